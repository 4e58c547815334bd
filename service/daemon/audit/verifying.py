# Everything is derived again from the rows: each leaf, every root that was signed, the
# range that the daemon goes on with. One pass, in the order of the log, in one read
# transaction: the daemon may write meanwhile.
"""Verifies a record: that it is whole, in order, and what it was when it was signed."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from service.daemon.audit.checkpoints import Checkpoint, CheckpointError, Verifier
from service.daemon.audit.erasing import retained_from
from service.daemon.audit.key_checks import KeyChecks
from service.daemon.audit.leaves import TABLES, Table, Value, row_hash
from service.daemon.audit.merkle import CompactRange
from service.daemon.audit.opening import FILE_NAME, AuditError
from service.daemon.audit.schema import VERSION
from service.daemon.audit.sealing import KeyFile

_MAX_FINDINGS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """
    What the log was at some time, as somebody outside remembers it.

    *root* may be its first bytes only.
    """

    size: int
    root: bytes


@dataclass(slots=True, kw_only=True)
class Report:
    """
    What a verification found.

    Attributes:
        findings: One line each; nothing is wrong where there is none.

        size: Leaves of the log.

        n_rows: Leaves whose row is there; the others' were taken by retention.

        n_erased: Rows whose key was destroyed, as an event says.

        checkpoint: The last one, signed; "" if its signature is wrong.
    """

    findings: list[str] = field(default_factory=list)
    size: int = 0
    n_rows: int = 0
    n_erased: int = 0
    checkpoint: str = ""

    def find(self, text: str) -> None:
        """Add a finding; the first thousand are kept."""
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(text)


def verify(
    directory: Path, verifier: Verifier, witness: Witness | None = None
) -> Report:
    """
    Verify the record in *directory*.

    Args:
        directory: May be written meanwhile.
        verifier: Of the key that signs it.
        witness: What it must have grown from.

    Raises:
        AuditError: There is no record, or of another version.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        raise AuditError(f"{path}: expected a record, found none")
    report = Report()
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None
    )
    with closing(connection):
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise AuditError(
                    f"{path}: expected schema version {VERSION}, got {version}"
                )
            with closing(KeyFile.open(directory, is_writer=False)) as keys:
                connection.execute("BEGIN")
                _Verification(connection, path, keys, verifier, report).run(witness)
        except (sqlite3.Error, OSError) as error:
            report.find(f"database: {error}")
    return report


class _Verification:
    """One pass over a record."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        keys: KeyFile,
        verifier: Verifier,
        report: Report,
    ) -> None:
        self._connection = connection
        self._verifier = verifier
        self._report = report
        self._find = report.find
        self._keys = KeyChecks(connection, path, keys)
        self._range = CompactRange()
        self._next = dict.fromkeys((table.name for table in TABLES), 1)

    def run(self, witness: Witness | None) -> None:
        """Look at all there is."""
        self._check_database()
        promises: list[Checkpoint | Witness] = [*self._checkpoints()]
        promises += [witness] if witness else []
        self._walk(sorted(promises, key=lambda one: one.size))
        self._check_state()
        self._report.size = self._range.size
        self._report.n_erased = self._keys.n_erased

    def _check_database(self) -> None:
        rows = self._connection.execute("PRAGMA integrity_check(20)").fetchall()
        for (said,) in rows:
            if said != "ok":
                self._find(f"database: {said}")
        rows = self._connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        ).fetchall()
        for kind, name in rows:
            self._find(f"database: a {kind} that is not ours: {name}")

    def _checkpoints(self) -> Iterator[Checkpoint]:
        rows = self._connection.execute(
            "SELECT size, checkpoint, signed_at FROM checkpoints ORDER BY size"
        ).fetchall()
        if not rows:
            self._find("checkpoints: there is none")
        for size, note, signed_at in rows:
            found = self._read(note, f"checkpoint of {size} leaves")
            if found is None:
                continue
            if (found.size, found.signed_at) != (size, signed_at):
                self._find(f"checkpoint of {size} leaves: was signed for {found.size}")
            yield found

    def _read(self, note: str, name: str) -> Checkpoint | None:
        try:
            return self._verifier.read(str(note))
        except CheckpointError as error:
            self._find(f"{name}: {error}")
            return None

    def _walk(self, promises: list[Checkpoint | Witness]) -> None:
        rows = {table.kind: _Rows(self._connection, table) for table in TABLES}
        retained = retained_from(self._connection)
        waiting = iter(promises)
        promise = next(waiting, None)
        leaves = self._connection.execute(
            "SELECT leaf, kind, row, hash FROM log ORDER BY leaf"
        )
        for leaf, kind, row, digest in leaves:
            while promise is not None and promise.size <= self._range.size:
                self._check_root(promise)
                promise = next(waiting, None)
            if leaf != self._range.size:
                self._find(f"log: leaf {self._range.size} is followed by leaf {leaf}")
                return
            if kind not in rows or type(row) is not int or type(digest) is not bytes:
                self._find(f"log: leaf {leaf} is not what a leaf is")
                return
            self._check_leaf(rows[kind], leaf, row, digest, retained)
            self._range.append(digest)
        for one in rows.values():
            one.skip(1 << 62, self._find)
        while promise is not None:
            self._check_root(promise)
            promise = next(waiting, None)

    def _check_leaf(
        self, rows: "_Rows", leaf: int, row_id: int, digest: bytes, retained: int
    ) -> None:
        name = f"{rows.table.name} {row_id}"
        if row_id < self._next[rows.table.name]:
            self._find(f"log: leaf {leaf} is {name}, out of order")
            return
        self._next[rows.table.name] = row_id + 1
        row = rows.take(row_id, self._find)
        if row is None:
            if leaf >= retained:
                self._find(f"{name}: is in the log (leaf {leaf}) and not in the record")
            return
        self._report.n_rows += 1
        if row_hash(rows.table, row) != digest:
            self._find(f"{name}: was altered (leaf {leaf})")
        elif problem := self._keys.problem(rows.table, row):
            self._find(f"{name}: {problem}")

    def _check_root(self, promise: Checkpoint | Witness) -> None:
        is_own = isinstance(promise, Checkpoint)
        name = f"checkpoint of {promise.size} leaves" if is_own else "witness"
        if promise.size > self._range.size:
            what = "its end was cut off" if is_own else "it was rolled back"
            self._find(
                f"{name}: saw {promise.size} leaves, the log has {self._range.size}: "
                f"{what}"
            )
        elif not self._range.root().startswith(promise.root):
            self._find(
                f"{name}: another root than that of the first {promise.size} leaves"
            )

    def _check_state(self) -> None:
        row = self._connection.execute(
            "SELECT size, peaks, next_rows, checkpoint, signed_at FROM log_state"
        ).fetchone()
        if row is None:
            self._find("log_state: there is none")
            return
        size, peaks, next_rows, note, signed_at = row
        if (size, peaks) != (self._range.size, self._range.to_bytes()):
            self._find(
                f"log_state: goes on from {size} leaves that are not the log's "
                f"{self._range.size}"
            )
        if next_rows != json.dumps(self._next):
            self._find("log_state: the next rows do not follow those of the log")
        found = self._read(note, "log_state")
        if found is None:
            return
        self._check_root(found)
        if (found.size, found.signed_at) != (size, signed_at):
            self._find(f"log_state: was signed for {found.size} leaves, not for {size}")
        else:
            self._report.checkpoint = str(note)


class _Rows:
    """The rows of a table in the order of their ids, one ahead."""

    def __init__(self, connection: sqlite3.Connection, table: Table) -> None:
        self.table = table
        self._cursor = connection.execute(
            f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {table.key}"
        )
        self._row: tuple[Value, ...] | None = None
        self._step()

    def _step(self) -> None:
        self._row = self._cursor.fetchone()

    def skip(self, row_id: int, find: Callable[[str], None]) -> None:
        """Go on to the first row that is not below *row_id*."""
        while self._row is not None and int(str(self._row[0])) < row_id:
            find(f"{self.table.name} {self._row[0]!r}: is not in the log")
            self._step()

    def take(
        self, row_id: int, find: Callable[[str], None]
    ) -> tuple[Value, ...] | None:
        """Return the row *row_id*, or None."""
        self.skip(row_id, find)
        row = self._row
        if row is None or row[0] != row_id:
            return None
        self._step()
        return row
