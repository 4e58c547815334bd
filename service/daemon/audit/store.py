"""Writes the record: SQLite, synced before anything is announced."""

import fcntl
import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monitor.records import Flag, Gap, LossReason, RequestSummary
from service.daemon.audit.indexes import PAGE_INDEXES
from service.daemon.audit.records import Entries, Event
from service.daemon.audit.schema import SCHEMA, UPGRADES, VERSION

FILE_NAME = "audit.sqlite"
_LOCK_NAME = "audit.lock"


class AuditError(ValueError):
    """The record cannot be opened: the operator's to mend. One line."""


class AuditStore:
    """
    The only writer of one folder's record. Used by one thread at a time.

    A `sqlite3.Error` from any method but `open` means that the record is no longer
    kept: the caller stops.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: int,
        *,
        token_ids: str,
        model: str,
        bundle_digest: str,
    ) -> None:
        self._connection = connection
        self._lock = lock
        self._token_ids = token_ids
        self._model = model
        self._bundle_digest = bundle_digest

    @classmethod
    def open(
        cls, directory: Path, *, token_ids: str, model: str, bundle_digest: str
    ) -> "AuditStore":
        """
        Open the record in *directory*, or begin one.

        Args:
            directory: Made if absent, readable by its owner only.
            token_ids: "ids", "hash" or "none".
            model: Written with every flag.
            bundle_digest: Of what it starts with.

        Raises:
            AuditError: It cannot be written, is in use, or is of another version.
        """
        path = directory / FILE_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise AuditError(
                f"audit directory {directory}: expected a writable directory: "
                f"{error.strerror}"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            connection = _connect(path)
        except BlockingIOError as error:
            os.close(lock)
            raise AuditError(
                f"audit directory {directory}: in use by another innerwatch"
            ) from error
        except (sqlite3.Error, AuditError) as error:
            os.close(lock)
            raise AuditError(f"{path}: {error}") from error
        return cls(
            connection,
            lock,
            token_ids=token_ids,
            model=model,
            bundle_digest=bundle_digest,
        )

    def begin(self, now: float, problems: Sequence[str] = ()) -> Gap | None:
        """
        Record a start; if the last run did not stop, also when it was down.

        *problems* are why it did not go on with the detector sets of before.

        Returns:
            The gap since the daemon was last known to run, or None.
        """
        last = self._connection.execute(
            "SELECT kind FROM events WHERE kind IN ('start', 'stop')"
            " ORDER BY event_id DESC LIMIT 1"
        ).fetchone()
        entries = Entries(events=[Event(kind="start", detail=self._bundle_digest)])
        entries.events += [Event(kind="detectors_lost", detail=p) for p in problems]
        gap = None
        if last is not None and last[0] == "start":
            gap = self._down_gap(now)
            # Nobody counted the tokens of that time: see `write`.
            entries.gaps.append((gap, "daemon was down"))
        self.write(entries, now)
        return gap

    def write(self, entries: Entries, now: float) -> None:
        """Add *entries* in one transaction; durable when this returns."""
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            for flag in entries.flags:
                self._write_flag(flag, now)
            for summary in entries.summaries:
                self._write_summary(summary, now)
            connection.executemany(
                "INSERT INTO gaps (engine, reason, first_step, last_step, n_tokens,"
                " began_at, ended_at, detail, recorded_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        gap.engine,
                        gap.reason.value,
                        gap.first_step,
                        gap.last_step,
                        gap.n_tokens if gap.n_tokens or gap.last_step else None,
                        gap.began_at,
                        gap.ended_at,
                        detail,
                        now,
                    )
                    for gap, detail in entries.gaps
                ],
            )
            connection.executemany(
                "INSERT INTO events (kind, engine, detail, at) VALUES (?, ?, ?, ?)",
                [(e.kind, e.engine, e.detail, now) for e in entries.events],
            )
            self._write_review(entries, now)
            self._touch(now)

    def touch(self, now: float) -> None:
        """Record that the daemon still runs."""
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._touch(now)

    def close(self) -> None:
        """Release the file and the lock. Writes nothing."""
        self._connection.close()
        os.close(self._lock)

    def _touch(self, now: float) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO liveness VALUES (1, ?)", (now,)
        )

    def _down_gap(self, now: float) -> Gap:
        row = self._connection.execute("SELECT at FROM liveness").fetchone()
        return Gap(
            engine="",
            rank=0,
            reason=LossReason.NOT_RECEIVED,
            first_step=0,
            last_step=0,
            n_tokens=0,
            began_at=min(row[0], now) if row else now,
            ended_at=now,
        )

    def _write_flag(self, flag: Flag, now: float) -> None:
        ids, digest = self._kept_tokens(flag.token_ids)
        self._connection.execute(
            "INSERT OR IGNORE INTO flags (engine, request_id, detector, score,"
            " threshold, position, scores, token_ids, token_ids_sha256, bank_digest,"
            " bundle_digest, model, flagged_at, adapter)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                flag.engine,
                flag.request_id,
                flag.detector,
                flag.score,
                flag.threshold,
                flag.position,
                _floats(flag.scores),
                ids,
                digest,
                flag.bank_digest,
                flag.bundle_digest or self._bundle_digest,
                self._model,
                now,
                flag.adapter,
            ),
        )

    def _write_summary(self, summary: RequestSummary, now: float) -> None:
        ids, digest = None, None
        if len(summary.token_ids):
            ids, digest = self._kept_tokens(summary.token_ids)
        lost = {reason.value: n for reason, n in summary.n_tokens_lost.items()}
        cursor = self._connection.execute(
            "INSERT INTO requests (engine, request_id, verdict, n_prompt_tokens,"
            " n_tokens_scored, n_tokens_lost, statistics, flagged_by, token_ids,"
            " token_ids_sha256, bundle_digest, model, finished_at, margins, p_value,"
            " is_discovery, abstention, n_tokens_shadowed, adapter)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                summary.engine,
                summary.request_id,
                summary.verdict.value,
                summary.n_prompt_tokens,
                summary.n_tokens_scored,
                json.dumps(lost),
                _json(summary.statistics),
                json.dumps(summary.flagged_by),
                ids,
                digest,
                summary.bundle_digest or self._bundle_digest,
                self._model,
                now,
                _json(summary.margins),
                None if math.isnan(summary.p_value) else summary.p_value,
                int(summary.is_discovery),
                summary.abstention,
                summary.n_tokens_shadowed,
                summary.adapter,
            ),
        )
        self._connection.executemany(
            "INSERT INTO request_scores VALUES (?, ?, ?)",
            [(cursor.lastrowid, d, _floats(s)) for d, s in summary.scores.items()],
        )

    def _write_review(self, entries: Entries, now: float) -> None:
        self._connection.executemany(
            "INSERT INTO labels (flag_id, engine, request_id, reviewer, label, note,"
            " at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (x.flag_id, x.engine, x.request_id, x.reviewer, x.label, x.note, now)
                for x in entries.labels
            ],
        )
        self._connection.executemany(
            "INSERT INTO views (engine, request_id, viewer, place, at)"
            " VALUES (?, ?, ?, ?, ?)",
            [(v.engine, v.request_id, v.viewer, v.where, now) for v in entries.views],
        )
        self._connection.executemany(
            "INSERT INTO exports (who, format, query, n_records, has_tokens, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (x.who, x.format, x.query, x.n_records, int(x.has_tokens), now)
                for x in entries.exports
            ],
        )
        self._connection.executemany(
            "INSERT INTO config_changes (key, before, after, who, at)"
            " VALUES (?, ?, ?, ?, ?)",
            [(c.key, c.before, c.after, c.who, now) for c in entries.config_changes],
        )

    def _kept_tokens(
        self, token_ids: NDArray[np.int32]
    ) -> tuple[bytes | None, str | None]:
        raw = token_ids.astype("<i4").tobytes()
        ids = raw if self._token_ids == "ids" else None
        is_hashed = self._token_ids in ("ids", "hash")
        return ids, hashlib.sha256(raw).hexdigest() if is_hashed else None


def _connect(path: Path) -> sqlite3.Connection:
    # Opened by the main thread, used by the ingest thread, closed by the main one.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        connection.close()
        raise AuditError(f"expected schema version {VERSION} or less, got {version}")
    upgrades = [UPGRADES[v] for v in range(version, VERSION)] if version else [SCHEMA]
    if version < VERSION:
        connection.executescript(
            f"BEGIN; {''.join(upgrades)} PRAGMA user_version = {VERSION}; COMMIT;"
        )
    connection.executescript(PAGE_INDEXES)
    path.chmod(0o600)
    return connection


def _json(by_detector: Mapping[str, float]) -> str:
    return json.dumps(
        {n: value if math.isfinite(value) else None for n, value in by_detector.items()}
    )


def _floats(scores: NDArray[np.float32]) -> bytes:
    return np.asarray(scores, dtype="<f4").tobytes()
