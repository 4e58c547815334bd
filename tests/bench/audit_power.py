"""
Whether a record opens and verifies after a power failure at any moment.

usage: python -m tests.bench.audit_power [--images 1000] [--seed 0]

Writes a record through an SQLite VFS (apsw) and a key file that note every write, sync
and truncation. Then makes images of what a disk may hold after a power failure: all
that was synced, and of the rest any part, in any order, cut anywhere. Each image is
opened, every flag that was acknowledged before is looked for, and it is verified.
Prints one JSON line.
"""

import argparse
import json
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw

from service.daemon.audit.checkpoints import Signer, Verifier
from service.daemon.audit.kept import Keeper
from service.daemon.audit.leaves import Value
from service.daemon.audit.opening import FILE_NAME, prepare
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries
from service.daemon.audit.schema import SCHEMA, VERSION
from service.daemon.audit.sealing import FILE_NAME as KEYS
from service.daemon.audit.sealing import KeyFile
from service.daemon.audit.store import PUBLIC_KEY, SIGNING_KEY, AuditStore
from service.daemon.audit.verifying import verify
from tests.service.recording import flag, open_store, summary

_SECTOR = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """
    What was done to a file.

    *data* was written at *offset*; None is a truncation to it. *is_sync* made all
    before it durable, and *is_deletion* took the file away.
    """

    name: str
    offset: int = 0
    data: bytes | None = None
    is_sync: bool = False
    is_deletion: bool = False


History = list[Operation]


class _File(apsw.VFSFile):
    """Notes what is done to a file, and does it."""

    def __init__(self, vfs: str, name: object, flags: list[int], history: History):
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._name = Path(path).name
        self._history = history
        super().__init__(vfs, name, flags)  # type: ignore[arg-type]

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._history.append(
            Operation(name=self._name, offset=offset, data=bytes(data))
        )
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._history.append(Operation(name=self._name, offset=size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._history.append(Operation(name=self._name, is_sync=True))


class _VFS(apsw.VFS):
    """The machine's own VFS, whose files are noted."""

    def __init__(self, history: History) -> None:
        self._history = history
        super().__init__("noted", "")

    def xOpen(  # noqa: N802
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        return _File("", name, flags, self._history)

    def xDelete(self, name: str, is_synced: bool) -> None:  # noqa: N802
        super().xDelete(name, is_synced)
        # Of journals only, whose folder SQLite syncs.
        self._history.append(Operation(name=Path(name).name, is_deletion=True))


class _Keys(KeyFile):
    """A key file whose writes are noted."""

    history: History

    def _write(self, data: bytes, offset: int) -> None:
        self.history.append(Operation(name=KEYS, offset=offset, data=data))
        super()._write(data, offset)

    def _sync(self) -> None:
        super()._sync()
        self.history.append(Operation(name=KEYS, is_sync=True))


class _Connection:
    """apsw's connection, called as sqlite3's is."""

    def __init__(self, path: Path, vfs: str) -> None:
        self._connection = apsw.Connection(str(path), vfs=vfs)

    def execute(self, sql: str, values: Sequence[Value] = (), /) -> apsw.Cursor:
        return self._connection.execute(sql, tuple(values))

    def executemany(self, sql: str, rows: Sequence[Sequence[Value]], /) -> apsw.Cursor:
        return self._connection.executemany(sql, [tuple(row) for row in rows])

    def close(self) -> None:
        self._connection.close()


def record(
    folder: Path, n_batches: int, rng: random.Random, *, is_synced: bool
) -> tuple[History, list[tuple[int, int]]]:
    """
    Write a record in *folder*.

    Returns:
        What was done to its files, and after how many operations how many requests
        had been acknowledged.
    """
    history: History = []
    vfs = _VFS(history)
    folder.mkdir()
    signer = Signer.open(folder / SIGNING_KEY)
    (folder / PUBLIC_KEY).write_text(signer.verifier.text)
    keys = _Keys.open(folder)
    keys.history = history
    connection = _Connection(folder / FILE_NAME, "noted")
    prepare(connection)
    if not is_synced:
        connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA wal_autocheckpoint = 60")  # Many, as failures are few.
    connection.execute(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
    store = AuditStore(
        connection,
        signer,
        keys,
        Keeper("token_ids", bytes(32)),
        model="m",
        bundle_digest="d",
    )
    acknowledged = [(len(history), 0)]
    n = 0
    for i in range(n_batches):
        names = [f"r{j}" for j in range(n, n + rng.randint(1, 5))]
        tokens = range(rng.choice((3, 2_000)))  # With overflow pages, and without.
        flags = [flag(name, tokens=tokens) for name in names]
        ends = [summary(name, "max", tokens=tokens) for name in names]
        store.write(Entries(flags=flags, summaries=ends), 1000.0 + i)
        n += len(names)
        acknowledged.append((len(history), n))
    connection.close()
    keys.close()
    vfs.unregister()
    return history, acknowledged


def image(history: History, stop: int, rng: random.Random) -> dict[str, bytes]:
    """Return what may be on disk if the power fails after *stop* operations."""
    files: dict[str, bytearray] = {FILE_NAME: bytearray(), KEYS: bytearray()}
    waiting: dict[str, list[Operation]] = {}
    for operation in history[:stop]:
        if operation.is_deletion:
            waiting.pop(operation.name, None)
            files.pop(operation.name, None)
        elif operation.is_sync:
            for one in waiting.pop(operation.name, []):
                _apply(files, one, None)
        else:
            waiting.setdefault(operation.name, []).append(operation)
    for operations in waiting.values():
        kept = [one for one in operations if rng.random() < rng.choice((0.1, 0.5, 0.9))]
        rng.shuffle(kept)
        for one in kept:
            _apply(files, one, rng if rng.random() < 0.3 else None)
    return {name: bytes(data) for name, data in files.items()}


def _apply(
    files: dict[str, bytearray], one: Operation, rng: random.Random | None
) -> None:
    """Do *one*; with *rng*, torn: up to some sector only, or some byte."""
    file = files.setdefault(one.name, bytearray())
    if one.data is None:
        del file[one.offset :]
        return
    data = one.data
    if rng is not None:
        n = rng.randrange(len(data))
        data = data[: n - n % _SECTOR if rng.random() < 0.8 else n]
    if len(file) < one.offset:
        file.extend(bytes(one.offset - len(file)))
    file[one.offset : one.offset + len(data)] = data


def look(folder: Path, n_acknowledged: int) -> list[str]:
    """Open the image in *folder*; return what is wrong with it."""
    verifier = Verifier.parse((folder / PUBLIC_KEY).read_text())
    try:
        with open_store(folder) as store:
            store.write(Entries(flags=[flag("after")]), 5000.0)
    except (OSError, ValueError, sqlite3.Error) as error:
        return [f"does not open: {error}"]
    found = {row.request_id for row in AuditReader(folder).flags(limit=1 << 30)}
    lost = {f"r{i}" for i in range(n_acknowledged)} - found
    return [*verify(folder, verifier).findings, *(f"{name} is lost" for name in lost)]


def measure(
    n_images: int, seed: int, *, n_batches: int = 60, is_synced: bool = True
) -> dict[str, object]:
    """
    Look at *n_images*; return what was counted, and the first problems.

    Without *is_synced* SQLite is told not to sync: then there must be some.
    """
    rng = random.Random(seed)
    problems: list[str] = []
    n_bad = n_unsynced = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        history, acknowledged = record(
            place / "whole", n_batches, rng, is_synced=is_synced
        )
        begun, _ = acknowledged[0]
        for _ in range(n_images):
            stop = rng.randint(begun, len(history))
            n_acknowledged = max(n for at, n in acknowledged if at <= stop)
            folder = place / "image"
            folder.mkdir()
            for key in (SIGNING_KEY, PUBLIC_KEY):
                shutil.copy(place / "whole" / key, folder / key)
            for file, data in image(history, stop, rng).items():
                (folder / file).write_bytes(data)
            n_unsynced += not history[stop - 1].is_sync
            found = look(folder, n_acknowledged)
            n_bad += bool(found)
            problems += found[:3]
            shutil.rmtree(folder)
    return {
        "n_images": n_images,
        "n_within_a_commit": n_unsynced,
        "n_bad": n_bad,
        "problems": problems[:5],
    }


def main() -> int:
    """Measure; 0 if every image opens and verifies, with all that was acknowledged."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = measure(args.images, args.seed)
    print(json.dumps(found | {"seed": args.seed}))
    return int(bool(found["n_bad"]))


if __name__ == "__main__":
    sys.exit(main())
