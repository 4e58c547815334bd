"""The flags of the record that a sink has not been told: the record is its queue."""

# The cursor is written after a flag was delivered and is not synced: a daemon killed
# in between sends the last ones again, with the same ids. None is ever left out.

import json
import sqlite3
from pathlib import Path

from service.daemon.audit.opening import FILE_NAME
from service.daemon.sinks.notice import Notice, NoticeKind, notice_id_of

_MOST_BYTES = 4096


class Backlog:
    """
    One sink's place in the record of one folder. Used by that sink's thread.

    Any method may raise `sqlite3.Error` or `OSError`: nothing was changed, and it may
    be called again.
    """

    def __init__(self, directory: Path, sink: str) -> None:
        self._path = directory / FILE_NAME
        self._cursor_path = directory / f"{sink}.json"
        self._connection: sqlite3.Connection | None = None
        self._cursor: int | None = None

    def next(self, n_most: int) -> list[Notice]:
        """Return the oldest flags behind the cursor, up to *n_most*."""
        rows = self._query(
            "SELECT flag_id, engine, request_id, detector, score, threshold, position,"
            " bundle_digest, model, adapter, flagged_at FROM flags"
            " WHERE flag_id > ? ORDER BY flag_id LIMIT ?",
            self.cursor,
            n_most,
        )
        return [_notice(row) for row in rows]

    def count(self) -> int:
        """Return how many flags are behind the cursor."""
        if self._newest() < self.cursor:
            # Every flag of before was removed, and numbers may begin again.
            self.advance(0)
        return self._number("SELECT count(*) FROM flags WHERE flag_id > ?", self.cursor)

    def skip(self, n_kept: int) -> int:
        """Leave out all but the newest *n_kept*; return how many that are."""
        n_out = max(0, self.count() - n_kept)
        if n_out:
            last = self._number(
                "SELECT flag_id FROM flags WHERE flag_id > ? ORDER BY flag_id"
                " LIMIT 1 OFFSET ?",
                self.cursor,
                n_out - 1,
            )
            self.advance(last)
        return n_out

    def advance(self, flag_id: int) -> None:
        """Go on behind *flag_id*, after a restart too."""
        unfinished = self._cursor_path.with_suffix(".new")
        unfinished.write_text(json.dumps({"last_flag_id": flag_id}))
        unfinished.replace(self._cursor_path)
        self._cursor = flag_id

    def close(self) -> None:
        """Let go of the record; the next call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def cursor(self) -> int:
        """The number of the last flag that is done with."""
        if self._cursor is None:
            newest = self._newest()
            saved = self._read_cursor()
            if saved is None:
                # What was flagged before there was a sink is nobody's news.
                self.advance(newest)
            else:
                # Behind the newest: another record lies here now.
                self._cursor = saved if saved <= newest else 0
        assert self._cursor is not None
        return self._cursor

    def _read_cursor(self) -> int | None:
        try:
            with self._cursor_path.open("rb") as file:
                found = json.loads(file.read(_MOST_BYTES))["last_flag_id"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return 0  # Half a file: everything again, with the same ids.
        return found if isinstance(found, int) and found >= 0 else 0

    def _newest(self) -> int:
        return self._number("SELECT coalesce(max(flag_id), 0) FROM flags")

    def _number(self, statement: str, *values: int) -> int:
        ((number,),) = self._query(statement, *values)
        assert isinstance(number, int)
        return number

    def _query(self, statement: str, *values: int) -> list[tuple[object, ...]]:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._path.resolve().as_uri()}?mode=ro",
                uri=True,
                check_same_thread=False,
            )
        return self._connection.execute(statement, values).fetchall()


def _notice(row: tuple[object, ...]) -> Notice:
    names = (
        "flag_id",
        "engine",
        "request_id",
        "detector",
        "score",
        "threshold",
        "position",
        "bundle_digest",
        "model",
        "adapter",
        "flagged_at",
    )
    fields = dict(zip(names, row, strict=True))
    return Notice(
        notice_id=notice_id_of(
            str(fields["engine"]), str(fields["request_id"]), str(fields["detector"])
        ),
        kind=NoticeKind.FLAG,
        **fields,  # type: ignore[arg-type]
    )
