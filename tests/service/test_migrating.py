"""Records of every earlier version are read, sealed and logged."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from service.daemon.audit.checkpoints import Verifier
from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries
from service.daemon.audit.rows import EventRow, GapRow
from service.daemon.audit.schema import VERSION
from service.daemon.audit.store import PUBLIC_KEY
from service.daemon.audit.verifying import verify
from tests.service.recording import ENGINE, flag, open_store

_OLD = Path(__file__).parent / "old_records"
_VERSIONS = (1, 2, 3)
# As little-endian int32 these are letters: they are found wherever they are in clear.
_SECRET = b"the secret of an earlier version"
_TOKENS = np.frombuffer(_SECRET, "<i4")
_SCORES = np.arange(len(_TOKENS), dtype="<f4")


def old_record(folder: Path, version: int) -> None:
    """
    A record as *version* left it: r1, flagged by two, whose ids were kept; r2, whose
    hash was; a clean r3; a gap and two events between them.
    """
    ids, digest = _TOKENS.tobytes(), hashlib.sha256(_TOKENS.tobytes()).hexdigest()
    folder.mkdir(exist_ok=True)
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript((_OLD / f"v{version}.sql").read_text())
        connection.execute(f"PRAGMA user_version = {version}")
        # Ids of flags that were repeated were used up.
        for flag_id, request_id, detector, kept, at in (
            (1, "r1", "max", ids, 1.0),
            (4, "r1", "mean", ids, 2.0),
            (5, "r2", "max", None, 5.0),
        ):
            connection.execute(
                "INSERT INTO flags (flag_id, engine, request_id, detector, score,"
                " threshold, position, scores, token_ids, token_ids_sha256,"
                " bank_digest, bundle_digest, model, flagged_at)"
                " VALUES (?, ?, ?, ?, 2.5, 1.5, 3, ?, ?, ?, 'b', 'd', 'm', ?)",
                (
                    flag_id,
                    ENGINE,
                    request_id,
                    detector,
                    _SCORES.tobytes(),
                    kept,
                    digest,
                    at,
                ),
            )
        for row, request_id, flagged_by, kept, its_digest, at in (
            (1, "r1", '["max", "mean"]', ids, digest, 3.0),
            (2, "r2", '["max"]', None, digest, 6.0),
            (3, "r3", "[]", None, None, 7.0),
        ):
            connection.execute(
                "INSERT INTO requests (request_row, engine, request_id, verdict,"
                " n_prompt_tokens, n_tokens_scored, n_tokens_lost, statistics,"
                " flagged_by, token_ids, token_ids_sha256, bundle_digest, model,"
                " finished_at) VALUES (?, ?, ?, 'scanned', 1, 8, '{}', '{}', ?, ?, ?,"
                " 'd', 'm', ?)",
                (row, ENGINE, request_id, flagged_by, kept, its_digest, at),
            )
        connection.executemany(
            "INSERT INTO request_scores VALUES (?, ?, ?)",
            [
                (1, "max", (_SCORES * 2).tobytes()),
                (1, "mean", (_SCORES * 3).tobytes()),
                (2, "max", _SCORES.tobytes()),
            ],
        )
        connection.execute(
            "INSERT INTO gaps VALUES (1, '', 'not_received', 0, 0, NULL, 1, 2, 'x', 4)"
        )
        connection.executemany(
            "INSERT INTO events VALUES (?, ?, '', '', ?)",
            [(1, "start", 0.5), (2, "stop", 8.0)],
        )
        connection.execute("INSERT INTO liveness VALUES (1, 7.5)")
        connection.commit()


def findings(folder: Path) -> list[str]:
    """What a verification finds."""
    verifier = Verifier.parse((folder / PUBLIC_KEY).read_text())
    return verify(folder, verifier).findings


@pytest.mark.parametrize("version", _VERSIONS)
class TestMigrate:
    def test_what_was_kept_is_found_again(self, tmp_path: Path, version: int) -> None:
        """
        Flags keep their ids, requests their scores and tokens, and a hash is kept as
        the keyed hash of it.
        """
        old_record(tmp_path, version)
        with open_store(tmp_path):
            pass
        reader = AuditReader(tmp_path)
        first, second = reader.request(ENGINE, "r1"), reader.request(ENGINE, "r2")

        assert [5, 4, 1] == [row.flag_id for row in reader.flags()]
        assert first is not None
        assert _SECRET == first.token_ids
        assert (_SCORES * 3).tobytes() == first.scores["mean"]
        assert second is not None
        assert (b"", 64) == (second.token_ids, len(second.digest))
        plain = hashlib.sha256(_TOKENS.tobytes()).hexdigest()
        assert plain != second.digest
        assert ["stop", "start"] == [row.kind for row in reader.newest(EventRow)]
        assert [None] == [row.n_tokens for row in reader.newest(GapRow)]

    def test_all_of_it_is_in_the_log(self, tmp_path: Path, version: int) -> None:
        """
        Every old row is a leaf, the oldest first, and later ones follow.
        """
        old_record(tmp_path, version)
        with open_store(tmp_path) as store:
            assert 9 == store.log_facts.size
            store.write(Entries(flags=[flag("r9")]), 9.0)

        assert [] == findings(tmp_path)
        assert 6 == AuditReader(tmp_path).flags()[0].flag_id
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
            order = connection.execute("SELECT kind FROM log ORDER BY leaf").fetchall()
            (now,) = connection.execute("PRAGMA user_version").fetchone()
        assert [4, 1, 1, 2, 3, 1, 2, 2, 4, 1] == [kind for (kind,) in order]
        assert now == VERSION

    def test_nothing_is_left_in_the_clear(self, tmp_path: Path, version: int) -> None:
        """
        Neither token ids nor their plain hash are in any file of the folder.
        """
        old_record(tmp_path, version)
        plain = hashlib.sha256(_TOKENS.tobytes()).hexdigest().encode()
        assert _SECRET in (tmp_path / FILE_NAME).read_bytes()

        with open_store(tmp_path):
            files = [path.read_bytes() for path in tmp_path.iterdir()]

        assert not [1 for data in files if _SECRET in data or plain in data]

    def test_retention_takes_old_records(self, tmp_path: Path, version: int) -> None:
        """
        What was migrated is taken away by its own age.
        """
        old_record(tmp_path, version)
        with open_store(tmp_path) as store:
            store.retain(4.5, 10.0)

        assert [5] == [row.flag_id for row in AuditReader(tmp_path).flags()]
        assert [] == findings(tmp_path)


def test_a_scrub_that_was_cut_short_is_done_at_the_next_start(tmp_path: Path) -> None:
    """
    A daemon that was killed after it had migrated clears the freed pages later.
    """
    old_record(tmp_path, 3)
    with open_store(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (?)", (_SECRET,))
        connection.execute("DROP TABLE t")
        connection.execute("UPDATE log_state SET is_scrubbed = 0")
        connection.commit()

    with open_store(tmp_path):
        files = [path.read_bytes() for path in tmp_path.iterdir()]

    assert not [1 for data in files if _SECRET in data]
    assert [] == findings(tmp_path)
