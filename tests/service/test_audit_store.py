"""What the record says of daemons that came and went, and of what is erased."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.daemon.audit.kept import Keeper
from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, View
from service.daemon.audit.rows import GapRow, RequestDetail
from service.daemon.audit.sealing import FILE_NAME as KEYS_NAME
from service.daemon.audit.sealing import KEY_BYTES, pack
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import ENGINE as LIVE_ENGINE
from tests.monitor.builders import Rows, loud, quiet
from tests.service.builders import RunningDaemon, innerwatch
from tests.service.recording import ENGINE, flag, open_store, summary
from tests.service.swapping import Engine


def test_a_command_is_no_daemon_that_ran(tmp_path: Path) -> None:
    """
    Whoever looks at a killed daemon's record does not shorten the gap that it left.
    """
    with open_store(tmp_path) as store:
        store.begin(1000.0)
        store.touch(1010.0)
    view = View(engine=ENGINE, request_id="r1", viewer="ada", where="command")
    with open_store(tmp_path) as store:
        store.write(Entries(views=[view]), 5000.0)

    with open_store(tmp_path) as store:
        store.begin(9000.0)

    (gap,) = AuditReader(tmp_path).newest(GapRow)
    assert (1010.0, 9000.0) == (gap.began_at, gap.ended_at)


def test_retention_waits_for_no_reader(tmp_path: Path) -> None:
    """
    While a verification reads the record, taking old rows away does not stop scoring.
    """
    with (
        open_store(tmp_path) as store,
        closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as reader,
    ):
        store.write(Entries(flags=[flag("r1")]), 1000.0)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM flags").fetchone()
        began = time.monotonic()

        assert 1 == store.retain(2000.0, 3000.0)

        assert time.monotonic() - began < 2.0


_KILLED_IN_A_COMMIT = """
import os, pathlib, signal, sys
from service.daemon.audit.records import Entries
from tests.service.recording import flag, open_store

with open_store(pathlib.Path(sys.argv[1])) as store:
    store.write(Entries(flags=[flag("r1")]), 1000.0)
    store._connection.execute("PRAGMA cache_size = 1")
    store._log.sign = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    store.write(Entries(flags=[flag("r2", tokens=range(10_000))]), 1001.0)
"""


def killed_in_a_commit(folder: Path) -> bytes:
    """Kill a daemon that writes of r2; return what it would have sealed."""
    child = [sys.executable, "-c", _KILLED_IN_A_COMMIT, str(folder)]
    assert -signal.SIGKILL == subprocess.run(child, check=False).returncode
    parts = Keeper("token_ids", b"").parts_of(flag("r2", tokens=range(10_000)))
    key = (folder / KEYS_NAME).read_bytes()[KEY_BYTES:]
    sealed = AESGCM(key).encrypt(bytes(12), pack(parts), None)
    assert is_found(sealed, folder)
    return sealed


def test_nothing_is_left_of_what_was_never_committed(tmp_path: Path) -> None:
    """
    Of a request in whose commit the daemon was killed no sealed byte is on disk after
    the next start: its key is named by no row, so that no erasure would destroy it.
    """
    sealed = killed_in_a_commit(tmp_path)

    with open_store(tmp_path):
        assert not is_found(sealed, tmp_path)
        assert AuditReader(tmp_path).request(ENGINE, "r2") is None
        assert kept(tmp_path, "r1").token_ids


def test_what_a_reader_holds_up_is_done_later(tmp_path: Path) -> None:
    """
    A start does not wait for a verification that outlived the daemon before; what was
    never committed is gone soon after that has ended.
    """
    sealed = killed_in_a_commit(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM flags").fetchone()
        began = time.monotonic()
        with open_store(tmp_path) as store:
            assert time.monotonic() - began < 2.0
            assert is_found(sealed, tmp_path)
            reader.execute("COMMIT")
            store.touch(1002.0)
            assert not is_found(sealed, tmp_path)


def is_found(sealed: bytes, folder: Path) -> bool:
    """Whether any file in *folder* has a part of *sealed*."""
    parts = [sealed[i : i + 32] for i in range(0, len(sealed), 997)]
    files = [path.read_bytes() for path in folder.iterdir()]
    return any(part in data for data in files for part in parts)


def kept(folder: Path, request_id: str, engine: str = ENGINE) -> RequestDetail:
    """What can be read of a request."""
    found = AuditReader(folder).request(engine, request_id)
    assert found is not None
    return found


class TestErase:
    def test_holds_for_what_comes_later(self, tmp_path: Path) -> None:
        """
        A request that is erased while it runs has nothing kept of it at its end, also
        where the daemon was started anew in between; the other has.
        """
        with open_store(tmp_path) as store:
            store.write(Entries(flags=[flag("r1"), flag("r2")]), 1000.0)
            assert 1 == store.erase("r1", 1001.0)
            store.write(Entries(flags=[flag("r1", "mean")]), 1002.0)
        with open_store(tmp_path) as store:
            ends = [summary("r1", "max", "mean"), summary("r2", "max")]
            store.write(Entries(summaries=ends), 1003.0)

        gone, other = kept(tmp_path, "r1"), kept(tmp_path, "r2")

        assert (True, b"", {}) == (gone.is_erased, gone.token_ids, dict(gone.scores))
        assert ["max", "mean"] == [row.detector for row in gone.flags]
        assert (False, 16) == (other.is_erased, len(other.token_ids))

    def test_of_one_that_runs(self, own_daemon: RunningDaemon, engine: Engine) -> None:
        """
        The daemon erases, by the client's id, a request that is flagged and runs, and
        one that is not flagged yet: of neither is anything kept afterwards.
        """
        flagged, calm = "cmpl-a-0-92983f4d", "cmpl-b-0-92983f4d"
        engine.step(Rows(flagged, 0, [loud(0)]), Rows(calm, 0, quiet(1)))
        folder = own_daemon.place.folder / "audit"
        assert kept(folder, flagged, LIVE_ENGINE).token_ids
        config = ("--config", str(own_daemon.place.config))

        for name in ("a", "b"):
            result = innerwatch("audit", "erase", "--request", name, *config)
            assert "erased: 1 requests\n" == result.stdout, result
        engine.step(
            *(Rows(name, 1, [loud(1)] * 4) for name in (flagged, calm)),
            finished=(flagged, calm),
        )

        for name in (flagged, calm):
            found = kept(folder, name, LIVE_ENGINE)
            assert "ema" in [row.detector for row in found.flags]
            assert found.summary is not None
            assert (True, b"", {}) == (
                found.is_erased,
                found.token_ids,
                dict(found.scores),
            )
        answer = engine.audit.Erase(pb.EraseRequest(request_id="nobody"))
        assert 0 == answer.n_requests
        assert 0 == innerwatch("audit", "verify", *config).returncode
