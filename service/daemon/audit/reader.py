"""Reads the record, without a way to change it."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.daemon.audit.erasing import ERASE, matching_requests
from service.daemon.audit.filters import (
    LABEL,
    N_ANSWERS,
    N_REVIEWERS,
    SUMMARY,
    VERDICT,
    FlagFilter,
    flag_conditions,
)
from service.daemon.audit.kept import Kept, kept_of
from service.daemon.audit.opening import FILE_NAME, AuditError
from service.daemon.audit.rows import (
    ConfigChangeRow,
    EventRow,
    ExportRow,
    FlagDetail,
    FlagRow,
    GapRow,
    LabelRow,
    RequestDetail,
    SummaryRow,
    ViewRow,
)
from service.daemon.audit.schema import VERSION
from service.daemon.audit.sealing import KeyFile, pack, unpack

COLUMNS = f"""
    flag_id, request_id, detector, score, threshold, position, bundle_digest, model,
    flagged_at, {VERDICT}, adapter, engine, {LABEL}, {N_ANSWERS} > 1
"""
"""Of the table ``flags``, what `flag_row` takes."""
_SUMMARY_FIELDS = (
    "request_row, engine, request_id, verdict, n_prompt_tokens, n_tokens_scored,"
    " n_tokens_shadowed, n_tokens_lost, statistics, margins, flagged_by, p_value,"
    " is_discovery, abstention, bundle_digest, model, adapter, finished_at"
)
_LABEL_FIELDS = "label_id, flag_id, engine, request_id, reviewer, label, at"
UNSEALED = "unsealed(key_slot, payload)"
"""What a row seals, for `unpack`; NULL if its key was destroyed."""
_LABELS = f"{_LABEL_FIELDS}, {UNSEALED}"
_MAX_INTEGER = 2**63 - 1  # Of SQLite; sqlite3 raises OverflowError beyond it.
_KINDS: dict[type, tuple[str, str]] = {
    EventRow: ("events", "event_id"),
    GapRow: ("gaps", "gap_id"),
    LabelRow: ("labels", "label_id"),
    ViewRow: ("views", "view_id"),
    ExportRow: ("exports", "export_id"),
    ConfigChangeRow: ("config_changes", "change_id"),
}

_Row = TypeVar("_Row")


class AuditReader:
    """
    Answers questions about the record in one folder, while it is written too.

    Every call opens its own connection, so any thread may call. Every call raises
    `AuditError` if there is no record that can be read.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME

    def flags(
        self, *, limit: int = 100, detector: str = "", request_id: str = ""
    ) -> list[FlagRow]:
        """
        Return flags, newest first.

        Args:
            limit: No more than these.
            detector: Only this one's; "" for all.
            request_id: Only of requests whose id contains it.
        """
        return self.find_flags(
            FlagFilter(detector=detector, search=request_id), limit=limit
        )

    def find_flags(self, wanted: FlagFilter, *, limit: int = 100) -> list[FlagRow]:
        """Return the flags that *wanted* asks for, no more than *limit*."""
        condition, values = flag_conditions(wanted)
        order = "ASC" if wanted.is_rising else "DESC"
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM flags WHERE {condition}"
                f" ORDER BY flag_id {order} LIMIT ?",
                (*values, min(limit, _MAX_INTEGER)),
            ).fetchall()
        return [flag_row(row) for row in rows]

    def count_flags(self, wanted: FlagFilter) -> int:
        """Return how many flags *wanted* asks for."""
        condition, values = flag_conditions(wanted)
        with self._connect() as connection:
            (n,) = connection.execute(
                f"SELECT count(*) FROM flags WHERE {condition}", values
            ).fetchone()
        return int(n)

    def flags_over_time(
        self, *, since: float, until: float, n_bins: int
    ) -> dict[str, list[int]]:
        """
        Count flags in *n_bins* equal spans of [since, until).

        Returns:
            By detector, a count for each span; detectors without a flag are absent.
        """
        width = (until - since) / n_bins
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT detector, CAST((flagged_at - ?) / ? AS INTEGER), count(*)"
                " FROM flags WHERE flagged_at >= ? AND flagged_at < ? GROUP BY 1, 2",
                (since, width, since, until),
            ).fetchall()
        counts: dict[str, list[int]] = {}
        for detector, span, n in rows:
            # By rounding, a time just before *until* may be one span too far.
            counts.setdefault(detector, [0] * n_bins)[min(span, n_bins - 1)] += n
        return counts

    def review_queue(
        self, reviewer: str, *, n_reviewers: int = 1, limit: int = 100
    ) -> list[FlagRow]:
        """
        Return flags that wait for *reviewer*, newest first.

        Those are the flags that fewer than *n_reviewers* people have labelled, and
        *reviewer* is none of them.
        """
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM flags WHERE {N_REVIEWERS} < ?"
                " AND NOT EXISTS (SELECT 1 FROM labels WHERE reviewer = ?"
                "                 AND labels.flag_id = flags.flag_id)"
                " ORDER BY flag_id DESC LIMIT ?",
                (n_reviewers, reviewer, limit),
            ).fetchall()
        return [flag_row(row) for row in rows]

    def flag(self, flag_id: int) -> FlagDetail | None:
        """Return one flag with its arrays, or None."""
        if flag_id > _MAX_INTEGER:
            return None
        with self._connect() as connection:
            row = connection.execute(
                f"SELECT {COLUMNS}, {SUMMARY.format(column='request_row')}"
                " FROM flags WHERE flag_id = ?",
                (flag_id,),
            ).fetchone()
            if row is None:
                return None
            flag = flag_row(row[:-1])
            kept = _kept(connection, [flag_id], row[-1])
        return FlagDetail(
            flag=flag,
            scores=kept.scores.get(flag.detector, b""),
            token_ids=kept.token_ids,
            contributions=kept.contributions.get(flag.detector, ()),
        )

    def request(self, engine: str, request_id: str) -> RequestDetail | None:
        """Return the newest request of that id with all that is kept, or None."""
        with self._connect() as connection:
            summary = connection.execute(
                f"SELECT {_SUMMARY_FIELDS} FROM requests WHERE request_id = ?"
                " AND engine = ? ORDER BY request_row DESC LIMIT 1",
                (request_id, engine),
            ).fetchone()
            flags = connection.execute(
                f"SELECT {COLUMNS} FROM flags WHERE request_id = ? AND engine = ?"
                " ORDER BY flag_id",
                (request_id, engine),
            ).fetchall()
            if summary is None and not flags:
                return None
            kept = _kept(
                connection, [flag[0] for flag in flags], summary and summary[0]
            )
            # Of one that ran when it was erased there may have been no key.
            is_erased = connection.execute(
                "SELECT 1 FROM events WHERE kind = ?"
                " AND CASE WHEN json_valid(detail)"
                " THEN json_extract(detail, '$.request_id') = ? END",
                (ERASE, request_id),
            ).fetchone()
            labels = connection.execute(
                f"SELECT {_LABELS} FROM labels"
                " WHERE request_id = ? AND engine = ? ORDER BY label_id",
                (request_id, engine),
            ).fetchall()
        return RequestDetail(
            engine=engine,
            request_id=request_id,
            summary=_summary_row(summary) if summary else None,
            flags=tuple(flag_row(row) for row in flags),
            scores=kept.scores,
            contributions=kept.contributions,
            token_ids=kept.token_ids,
            text=kept.text,
            digest=kept.digest,
            is_erased=kept.is_erased or is_erased is not None,
            labels=tuple(_label_row(row) for row in labels),
        )

    def matching(self, request_id: str) -> list[str]:
        """Return the ids that are *request_id*, or that a client calls so."""
        with self._connect() as connection:
            return matching_requests(connection, request_id)

    def labels(self, flag_id: int) -> list[LabelRow]:
        """Return all that was said of a flag, oldest first."""
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {_LABELS} FROM labels WHERE flag_id = ? ORDER BY label_id",
                (flag_id,),
            ).fetchall()
        return [_label_row(row) for row in rows]

    def newest(
        self, kind: type[_Row], *, limit: int = 100, before: int = 0
    ) -> list[_Row]:
        """
        Return rows of one kind, newest first: events, gaps, labels, views, exports.

        Args:
            kind: The record that is wanted, e.g. `EventRow`.
            limit: No more than these.
            before: Only with a lower id; 0 for all.
        """
        table, key = _KINDS[kind]
        columns = _LABELS if kind is LabelRow else _names(kind)
        make = _label_row if kind is LabelRow else partial(_record, kind)
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {columns} FROM {table} WHERE ? = 0 OR {key} < ?"
                f" ORDER BY {key} DESC LIMIT ?",
                (before, before, min(limit, _MAX_INTEGER)),
            ).fetchall()
        return [make(row) for row in rows]  # type: ignore[misc]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        if not self._path.is_file():
            raise AuditError(f"{self._path}: expected a record, found none")
        try:
            connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)
            with closing(connection):
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version != VERSION:
                    raise AuditError(
                        f"{self._path}: expected schema version {VERSION}, "
                        f"got {version}"
                    )
                with closing(KeyFile.open(self._path.parent, is_writer=False)) as keys:
                    connection.create_function("unsealed", 2, partial(_unsealed, keys))
                    yield connection
        except (sqlite3.Error, OSError) as error:
            raise AuditError(f"{self._path}: {error}") from error


def _kept(
    connection: sqlite3.Connection, flag_ids: Sequence[int], request_row: int | None
) -> Kept:
    """Return what is kept of a request: by its flags, and at its end by itself."""
    opened = [
        connection.execute(
            f"SELECT {UNSEALED} FROM flags WHERE flag_id = ?", (flag_id,)
        ).fetchone()
        for flag_id in flag_ids
    ]
    if request_row is not None:
        opened.append(
            connection.execute(
                f"SELECT {UNSEALED} FROM requests WHERE request_row = ?",
                (request_row,),
            ).fetchone()
        )
    return kept_of([None if data is None else unpack(data) for (data,) in opened])


def _label_row(row: Sequence[object]) -> LabelRow:
    *facts, sealed = row
    note = unpack(sealed).get("note", b"") if isinstance(sealed, bytes) else b""
    names = (*_LABEL_FIELDS.split(", "), "note")
    return LabelRow(**dict(zip(names, (*facts, note.decode()), strict=True)))  # type: ignore[arg-type]


def _unsealed(keys: KeyFile, slot: int, payload: bytes) -> bytes | None:
    parts = keys.unseal(slot, payload)
    return None if parts is None else pack(parts)


def _names(kind: type) -> str:
    return ", ".join(kind.__dataclass_fields__)  # type: ignore[attr-defined]


def _record(kind: type[_Row], row: Sequence[object]) -> _Row:
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**dict(zip(names, row, strict=True)))


def flag_row(row: Sequence[object]) -> FlagRow:
    """Return a row of `COLUMNS` as a record."""
    return _record(FlagRow, (*row[:-1], bool(row[-1])))


def _summary_row(row: Sequence[object]) -> SummaryRow:
    values = dict(zip(_SUMMARY_FIELDS.split(", "), row, strict=True))
    for name in ("n_tokens_lost", "statistics", "margins"):
        values[name] = json.loads(str(values[name] or "{}"))
    values["flagged_by"] = tuple(json.loads(str(values["flagged_by"])))
    values["is_discovery"] = bool(values["is_discovery"])
    return SummaryRow(**values)  # type: ignore[arg-type]
