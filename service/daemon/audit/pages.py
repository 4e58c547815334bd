# A record may have millions of flags, and a page has a few milliseconds. What has an
# index (time, detector, score) is looked for everywhere; whatever else is asked for is
# looked for in a stretch of flags at a time, and the answer says how far that went.
"""What the audit page asks of the record, in bounded time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from service.daemon.audit.filters import FlagFilter, flag_conditions
from service.daemon.audit.reader import COLUMNS, AuditReader, flag_row
from service.daemon.audit.rows import FlagRow

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

        further: Behind which flag id, in the order, the others are; 0 if there are
            none.

        n_texts: Of how many of those that were looked at text is kept, where words in
            it are asked for; else None.
    """

    flags: tuple[FlagRow, ...]
    has_more: bool
    searched_from: int = 0
    searched_to: int = 0
    further: int = 0
    n_texts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """Requests that finished in some time, and those that were flagged."""

    n_requests: int = 0
    n_flagged: int = 0


class _Stretch(NamedTuple):
    first: int
    last: int
    further: int


class PageReader(AuditReader):
    """An `AuditReader` with the questions that a page has."""

    def __init__(self, directory: Path, *, stretch: int = STRETCH) -> None:
        """*stretch* is how many flags are looked through at a time."""
        super().__init__(directory)
        self._stretch_flags = stretch

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
        stretch = self._stretch(wanted, order) if _needs_reading(wanted) else None
        if stretch is not None:
            wanted = replace(wanted, after=stretch.first - 1, before=stretch.last + 1)
        if order.is_by_score:
            found = self._by_score(wanted, order, limit + 1, offset)
        else:
            found = self._by_time(wanted, order, limit + 1)
        return FlagPage(
            flags=tuple(found[:limit]),
            has_more=len(found) > limit,
            searched_from=stretch.first if stretch else 0,
            searched_to=stretch.last if stretch else 0,
            further=stretch.further if stretch else 0,
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

    def n_waiting(self) -> int:
        """Return how many flags nobody has labelled."""
        with self._connect() as connection:
            (n,) = connection.execute(
                "SELECT (SELECT count(*) FROM flags) - (SELECT count(DISTINCT flag_id)"
                " FROM labels WHERE flag_id > 0)"
            ).fetchone()
        return int(n)

    def second_opinions(
        self, reviewer: str, *, before: int = 0, limit: int = 100
    ) -> list[FlagRow]:
        """
        Return flags that one person has labelled, and *reviewer* has not, newest first.

        *before* asks only for those with a lower flag id; 0 for all.
        """
        return self._select(
            "flag_id IN (SELECT flag_id FROM labels"
            "  WHERE flag_id > 0 AND (? = 0 OR flag_id < ?)"
            "  GROUP BY flag_id HAVING count(DISTINCT reviewer) = 1"
            "  AND min(reviewer) != ? ORDER BY flag_id DESC LIMIT ?)"
            " ORDER BY flag_id DESC",
            (before, before, reviewer, limit),
        )

    def unlabelled(self, *, before: int = 0, limit: int = 100) -> list[FlagRow]:
        """Return flags that nobody has labelled, newest first; *before* as above."""
        return self._select(
            "(? = 0 OR flag_id < ?) AND flag_id NOT IN (SELECT flag_id FROM labels)"
            " ORDER BY flag_id DESC LIMIT ?",
            (before, before, limit),
        )

    def disputed(self, *, before: int = 0, limit: int = 100) -> list[FlagRow]:
        """Return the flags that reviewers disagree on, newest first."""
        return self._select(
            "flag_id IN (SELECT flag_id FROM ("
            "    SELECT flag_id, reviewer, label, max(label_id)"
            "    FROM labels WHERE flag_id > 0 GROUP BY flag_id, reviewer)"
            "  WHERE label != 'unsure' AND (? = 0 OR flag_id < ?) GROUP BY flag_id"
            "  HAVING count(DISTINCT label) > 1) ORDER BY flag_id DESC LIMIT ?",
            (before, before, limit),
        )

    def flags_by_id(self, flag_ids: Sequence[int]) -> list[FlagRow]:
        """Return the flags of these ids that there are, newest first."""
        known = [flag_id for flag_id in flag_ids if flag_id < 1 << 63]
        return self._select(
            f"flag_id IN ({', '.join('?' * len(known))}) ORDER BY flag_id DESC", known
        )

    def _stretch(self, wanted: FlagFilter, order: FlagOrder) -> "_Stretch":
        """Return which flags are looked through, beginning where *wanted* does."""
        with self._connect() as connection:
            # Flags are numbered in the order of their time.
            (lowest, highest) = connection.execute(
                "SELECT coalesce((SELECT flag_id FROM flags WHERE flagged_at >= ?"
                "   ORDER BY flagged_at, flag_id LIMIT 1), max(flag_id) + 1, 1),"
                " coalesce(CASE WHEN ? > 0 THEN"
                "   coalesce((SELECT flag_id FROM flags WHERE flagged_at < ?"
                "     ORDER BY flagged_at DESC, flag_id DESC LIMIT 1), 0)"
                "   ELSE max(flag_id) END, 0) FROM flags",
                (wanted.since, wanted.until, wanted.until),
            ).fetchone()
        lowest = max(lowest, wanted.after + 1)
        highest = min(highest, wanted.before - 1) if wanted.before else highest
        if order is FlagOrder.OLDEST:
            last = min(lowest + self._stretch_flags - 1, highest)
            return _Stretch(lowest, last, last if last < highest else 0)
        first = max(highest - self._stretch_flags + 1, lowest)
        return _Stretch(first, highest, first if first > lowest else 0)

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
        is_bounded = wanted.since or wanted.until or wanted.before
        if _needs_reading(wanted) or is_bounded:
            condition, values = flag_conditions(wanted)
            return self._select(
                f"{condition} ORDER BY score {direction}, flag_id {direction}"
                " LIMIT ? OFFSET ?",
                (*values, limit, offset),
            )
        # The index knows the order for each detector: the first of each are merged.
        names = [wanted.detector] if wanted.detector else self.detectors()
        if not names:
            return []
        each = "SELECT * FROM (SELECT flag_id FROM flags WHERE detector = ? "
        each += f"ORDER BY score {direction}, flag_id {direction} LIMIT ?)"
        parameters = [v for name in names for v in (name, offset + limit)]
        return self._select(
            f"flag_id IN ({' UNION ALL '.join([each] * len(names))})"
            f" ORDER BY score {direction}, flag_id {direction} LIMIT ? OFFSET ?",
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
