"""Reads the record, without a way to change it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.daemon.audit.schema import VERSION
from service.daemon.audit.store import FILE_NAME, AuditError

# A flag's verdict is that of the first summary of its request after it: request
# ids may be used again by a client.
_SUMMARY = """
    (SELECT {column} FROM requests
     WHERE requests.request_id = flags.request_id
       AND requests.engine = flags.engine
       AND requests.finished_at >= flags.flagged_at
     ORDER BY request_row LIMIT 1)
"""
_COLUMNS = f"""
    flag_id, request_id, detector, score, threshold, position, bundle_digest, model,
    flagged_at, coalesce({_SUMMARY.format(column="verdict")}, ''), adapter
"""

_MAX_INTEGER = 2**63 - 1  # Of SQLite; sqlite3 raises OverflowError beyond it.


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagRow:
    """One flag as it is stored; *verdict* is empty while the request runs."""

    flag_id: int
    request_id: str
    detector: str
    score: float
    threshold: float
    position: int
    bundle_digest: str
    model: str
    flagged_at: float
    verdict: str
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagDetail:
    """
    A flag with its arrays, as bytes: little-endian float32 and int32.

    After the request's end they cover all of it, before, what was seen when it was
    flagged.
    """

    flag: FlagRow
    scores: bytes
    token_ids: bytes


class AuditReader:
    """
    Answers questions about the record in one folder, while it is written too.

    Every call opens its own connection, so any thread may call.
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

        Raises:
            AuditError: There is no record that can be read.
        """
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM flags"
                " WHERE (? = '' OR detector = ?)"
                " AND (? = '' OR instr(request_id, ?) > 0)"
                " ORDER BY flag_id DESC LIMIT ?",
                (detector, detector, request_id, request_id, min(limit, _MAX_INTEGER)),
            ).fetchall()
        return [_flag_row(row) for row in rows]

    def flag(self, flag_id: int) -> FlagDetail | None:
        """
        Return one flag with its arrays, or None.

        Raises:
            AuditError: There is no record that can be read.
        """
        with self._connect() as connection:
            if flag_id > _MAX_INTEGER:
                return None
            row = connection.execute(
                f"SELECT {_COLUMNS}, scores, token_ids, detector,"
                f" {_SUMMARY.format(column='request_row')},"
                f" {_SUMMARY.format(column='token_ids')}"
                " FROM flags WHERE flag_id = ?",
                (flag_id,),
            ).fetchone()
            if row is None:
                return None
            *flag, scores, token_ids, name, request_row, all_token_ids = row
            final = connection.execute(
                "SELECT scores FROM request_scores"
                " WHERE request_row = ? AND detector = ?",
                (request_row, name),
            ).fetchone()
        return FlagDetail(
            flag=_flag_row(tuple(flag)),
            scores=final[0] if final else scores,
            token_ids=all_token_ids or token_ids or b"",
        )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        if not self._path.is_file():
            raise AuditError(f"{self._path}: expected a record, found none")
        try:
            connection = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)
            try:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version != VERSION:
                    raise AuditError(
                        f"{self._path}: expected schema version {VERSION}, "
                        f"got {version}"
                    )
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise AuditError(f"{self._path}: {error}") from error


def _flag_row(row: tuple[object, ...]) -> FlagRow:
    names = FlagRow.__dataclass_fields__
    return FlagRow(**dict(zip(names, row, strict=True)))  # type: ignore[arg-type]
