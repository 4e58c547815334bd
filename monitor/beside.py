"""What the shadow set remembers of requests that are another set's, and its tally."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monitor.ended import Key
from monitor.live import LiveRequest
from monitor.records import Flag, StepBatch, Verdict
from monitor.scoring import ScoredRows
from monitor.set_scores import WatchedSet

_NOBODY = LiveRequest(slot=-1, number=-1)


def take_in_beside(
    one: WatchedSet,
    batch: StepBatch,
    found: ScoredRows,
    besides: Sequence[LiveRequest | None],
    request_of_row: NDArray[np.int64],
    positions: NDArray[np.int64],
    *,
    is_cached: bool,
) -> None:
    """
    Fold what a shadow found into what it remembers.

    Args:
        one: The shadow.
        batch: The step.
        found: In *batch*.
        besides: Of each request, in row order; None where it does not follow it.
        request_of_row: Of shape (n_rows,), into *besides*.
        positions: Of shape (n_rows,).
        is_cached: Whether *found* is what it said before of tokens from a cache.
    """
    is_followed = np.array([b is not None for b in besides], dtype=np.bool_)
    own = found.without(~is_followed[request_of_row])
    if not len(own.rows):
        return
    followed = [beside or _NOBODY for beside in besides]
    n_each = np.bincount(request_of_row[own.rows], minlength=len(followed))
    for index in np.flatnonzero(n_each).tolist():
        coverage = followed[index].coverage
        coverage.n_shadowed += n_each[index] if is_cached else 0
        coverage.n_scored += 0 if is_cached else n_each[index]
    flags = one.watch.take_in(batch, own, followed, request_of_row, positions)
    _count(one, flags)


def end_beside(one: WatchedSet, key: Key, live: LiveRequest, verdict: Verdict) -> None:
    """Judge what the shadow *one* remembers of *live*, and tally it."""
    assert live.beside is not None
    flags, summary = one.watch.end(key, live.beside, verdict)
    _count(one, flags)
    one.tally.n_requests += 1
    one.tally.n_requests_flagged += bool(summary.flagged_by)
    one.tally.n_flagged_live += bool(live.flagged)
    one.tally.n_abstentions += summary.abstention is not None


def _count(one: WatchedSet, flags: Sequence[Flag]) -> None:
    for flag in flags:
        one.tally.n_flags[flag.detector] += 1
