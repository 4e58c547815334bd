# A sender repeats what a killed daemon had not acknowledged, and some of that had been
# committed. Its requests begin anew here, in their middle: what is said of them then is
# no news, and less than is in the record.
"""What a drain adds that is in the record already."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from monitor.records import Flag, RequestSummary
from service.daemon.audit.leaves import Value
from service.daemon.audit.log import Connection

log = logging.getLogger("innerwatch.audit")

_FLAGS = "SELECT request_id, engine, detector FROM flags WHERE request_id IN ({marks})"
_REQUESTS = """
    SELECT request_id, engine, request_row, n_tokens_scored, n_tokens_shadowed,
           n_tokens_lost, flagged_by
    FROM requests WHERE request_id IN ({marks})
"""
_N_ASKED = 256
"""Requests that one statement looks for."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a summary tells of its request."""

    n_judged: int
    n_lost: int
    flagged_by: frozenset[str]

    def holds(self, other: "_Told") -> bool:
        """Whether *other* tells of no token and no flag that this does not."""
        return (
            self.n_judged >= other.n_judged
            and self.n_judged + self.n_lost >= other.n_judged + other.n_lost
            and self.flagged_by >= other.flagged_by
        )


class Repeats:
    """
    Looks in the record for what came before.

    Args:
        first_row: Of the requests that end from now on. Within one life a daemon knows
            which steps it has seen.
    """

    def __init__(self, connection: Connection, first_row: int) -> None:
        self._connection = connection
        self._first_row = first_row
        self._left_out: set[tuple[str, str]] = set()

    def new_flags(self, flags: Sequence[Flag]) -> list[Flag]:
        """Return those of *flags* that neither the record nor the others have."""
        ids = {flag.request_id for flag in flags}
        seen = {tuple(row) for row in self._rows(_FLAGS, ids)}
        new = []
        for flag in flags:
            name = (flag.request_id, flag.engine, flag.detector)
            if name not in seen:
                seen.add(name)
                new.append(flag)
        return new

    def new_summaries(
        self, summaries: Sequence[RequestSummary]
    ) -> list[RequestSummary]:
        """
        Return *summaries* but for the repeated.

        That is one that tells no more than the record did at the start, the first that
        is heard of its request since: what ends twice in a life is in two parts.
        """
        told: dict[tuple[Value, ...], list[_Told]] = {}
        heard = set(self._left_out)
        for row in self._rows(_REQUESTS, {s.request_id for s in summaries}):
            request_id, engine, number, n_scored, n_shadowed, lost, flagged_by = row
            assert isinstance(number, int)
            assert isinstance(n_scored, int)
            assert isinstance(n_shadowed, int)
            if number >= self._first_row:
                heard.add((str(request_id), str(engine)))
            one = _Told(
                n_scored + n_shadowed,
                sum(json.loads(str(lost)).values()),
                frozenset(json.loads(str(flagged_by))),
            )
            told.setdefault((request_id, engine), []).append(one)
        new = []
        for summary in summaries:
            key = (summary.request_id, summary.engine)
            before = told.get(key, ()) if key not in heard else ()
            heard.add(key)
            if any(one.holds(_told(summary)) for one in before):
                self._left_out.add(key)
                log.info("request %s: its end is in the record", summary.request_id)
            else:
                new.append(summary)
        return new

    def _rows(self, query: str, request_ids: set[str]) -> Iterator[Sequence[Value]]:
        ids = sorted(request_ids)
        for start in range(0, len(ids), _N_ASKED):
            some = ids[start : start + _N_ASKED]
            marks = ", ".join("?" * len(some))
            cursor = self._connection.execute(query.format(marks=marks), some)
            while (row := cursor.fetchone()) is not None:
                yield row


def _told(summary: RequestSummary) -> _Told:
    return _Told(
        summary.n_tokens_scored + summary.n_tokens_shadowed,
        sum(summary.n_tokens_lost.values()),
        frozenset(summary.flagged_by),
    )
