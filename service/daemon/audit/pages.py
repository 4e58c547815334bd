# A record may have millions of flags, and a page has a few milliseconds. What has an
# index (time, detector, score) is looked for everywhere; whatever else is asked for is
# looked for in a stretch of flags at a time, and the answer says how far that went.
"""What the audit page asks of the record, in bounded time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from service.daemon.audit.filters import FlagFilter, flag_conditions
from service.daemon.audit.reader import COLUMNS, AuditReader, flag_row
from service.daemon.audit.rows import FlagRow

INDEXES = """
CREATE INDEX IF NOT EXISTS flags_by_detector ON flags (detector, flag_id);
CREATE INDEX IF NOT EXISTS flags_by_score ON flags (detector, score);
CREATE INDEX IF NOT EXISTS flags_by_time ON flags (flagged_at, detector);
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (finished_at, flagged_by);
"""
"""Made when the record is opened for writing; nothing but speed depends on them."""

STRETCH = 20_000
"""Flags that are looked through for what no index knows: some 50 ms."""


class FlagOrder(StrEnum):
    """How a list of flags is sorted."""

    NEWEST = "newest"
    OLDEST = "oldest"
    HIGHEST = "highest"
    LOWEST = "lowest"

    @property
    def is_by_score(self) -> bool:
        """Whether the score decides, and not the time."""
        return self in (FlagOrder.HIGHEST, FlagOrder.LOWEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagPage:
    """
    Some of the flags that were asked for.

    Attributes:
        flags: In the order that was asked for.

        has_more: Whether there are others behind them.

        searched_from, searched_to: The lowest and highest flag id that was looked
            at, where that was not all; else 0.
    """

    flags: tuple[FlagRow, ...]
    has_more: bool
    searched_from: int = 0
    searched_to: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """Requests that finished in some time, and those that were flagged."""

    n_requests: int = 0
    n_flagged: int = 0


class PageReader(AuditReader):
    """An `AuditReader` with the questions that a page has."""

    def page(
        self,
        wanted: FlagFilter,
        order: FlagOrder = FlagOrder.NEWEST,
        *,
        limit: int = 50,
        offset: int = 0,
    ) -> FlagPage:
        """
        Return up to *limit* flags of *wanted* in *order*.

        Args:
            wanted: Its `before` and `after` say where a page by time begins.
            order: By time, or by score.
            limit: No more than these.
            offset: Flags of that order to leave out; only by score.
        """
        bounded, first, last = self._bounded(wanted, order)
        if order.is_by_score:
            found = self._by_score(bounded, order, limit + 1, offset)
        else:
            found = self._by_time(bounded, order, limit + 1)
        return FlagPage(
            flags=tuple(found[:limit]),
            has_more=len(found) > limit,
            searched_from=first,
            searched_to=last,
        )

    def neighbours(self, flag_id: int) -> tuple[int, int]:
        """Return the flags before and after one, newest first; 0 where none is."""
        with self._connect() as connection:
            (newer,) = connection.execute(
                "SELECT min(flag_id) FROM flags WHERE flag_id > ?", (flag_id,)
            ).fetchone()
            (older,) = connection.execute(
                "SELECT max(flag_id) FROM flags WHERE flag_id < ?", (flag_id,)
            ).fetchone()
        return newer or 0, older or 0

    def request_counts(self, since: float, until: float) -> RequestCounts:
        """Count the requests that finished in [since, until)."""
        with self._connect() as connection:
            n, flagged = connection.execute(
                "SELECT count(*), coalesce(sum(flagged_by != '[]'), 0) FROM requests"
                " WHERE finished_at >= ? AND finished_at < ?",
                (since, until),
            ).fetchone()
        return RequestCounts(n_requests=n, n_flagged=flagged)

    def detectors(self) -> list[str]:
        """Return the names of all detectors that ever flagged."""
        names: list[str] = []
        with self._connect() as connection:
            while True:  # A look into the index each, however many flags there are.
                (name,) = connection.execute(
                    "SELECT min(detector) FROM flags WHERE detector > ?",
                    (names[-1] if names else "",),
                ).fetchone()
                if name is None:
                    return names
                names.append(name)

    def disputed(self, limit: int = 100) -> list[FlagRow]:
        """Return the flags that reviewers disagree on, latest dispute first."""
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM flags JOIN ("
                "  SELECT flag_id AS disputed_id, max(label_id) AS latest FROM ("
                "    SELECT flag_id, reviewer, label, max(label_id) AS label_id"
                "    FROM labels WHERE flag_id > 0 GROUP BY flag_id, reviewer)"
                "  WHERE label != 'unsure' GROUP BY flag_id"
                "  HAVING count(DISTINCT label) > 1)"
                " ON flags.flag_id = disputed_id ORDER BY latest DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [flag_row(row) for row in rows]

    def _bounded(
        self, wanted: FlagFilter, order: FlagOrder
    ) -> tuple[FlagFilter, int, int]:
        """Return *wanted* within a stretch, and that stretch; 0 and 0 for all."""
        if not _needs_reading(wanted):
            return wanted, 0, 0
        with self._connect() as connection:
            (newest,) = connection.execute("SELECT max(flag_id) FROM flags").fetchone()
        if order is FlagOrder.OLDEST:
            first = wanted.after + 1
            last = min(wanted.after + STRETCH, newest or 0)
            return replace(wanted, before=last + 1, after=first - 1), first, last
        last = (wanted.before or (newest or 0) + 1) - 1
        first = max(last - STRETCH + 1, 1)
        return replace(wanted, before=last + 1, after=first - 1), first, last

    def _by_time(
        self, wanted: FlagFilter, order: FlagOrder, limit: int
    ) -> list[FlagRow]:
        condition, values = flag_conditions(wanted)
        direction = "ASC" if order is FlagOrder.OLDEST else "DESC"
        # Flags come in the order of their time: its index serves both.
        key = "flagged_at" if wanted.since or wanted.until else "flag_id"
        return self._select(
            f"{condition} ORDER BY {key} {direction}, flag_id {direction} LIMIT ?",
            (*values, limit),
        )

    def _by_score(
        self, wanted: FlagFilter, order: FlagOrder, limit: int, offset: int
    ) -> list[FlagRow]:
        direction = "ASC" if order is FlagOrder.LOWEST else "DESC"
        if _needs_reading(wanted) or wanted.since or wanted.until:
            condition, values = flag_conditions(wanted)
            return self._select(
                f"{condition} ORDER BY score {direction} LIMIT ? OFFSET ?",
                (*values, limit, offset),
            )
        # The index knows the order for each detector: the first of each are merged.
        names = [wanted.detector] if wanted.detector else self.detectors()
        if not names:
            return []
        each = "SELECT * FROM (SELECT flag_id FROM flags WHERE detector = ? "
        each += f"ORDER BY score {direction} LIMIT ?)"
        parameters = [v for name in names for v in (name, offset + limit)]
        return self._select(
            f"flag_id IN ({' UNION ALL '.join([each] * len(names))})"
            f" ORDER BY score {direction} LIMIT ? OFFSET ?",
            (*parameters, limit, offset),
        )

    def _select(self, rest: str, values: Sequence[str | float]) -> list[FlagRow]:
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM flags WHERE {rest}", values
            ).fetchall()
        return [flag_row(row) for row in rows]


def _needs_reading(wanted: FlagFilter) -> bool:
    """Whether *wanted* asks for what no index knows."""
    unknown = (wanted.engine, wanted.model, wanted.verdict, wanted.search)
    return any(unknown) or wanted.label is not None
