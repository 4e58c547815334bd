# A flag is often raised long after the token that it is about: at the request's end, or
# by a mean. What that token's columns were is asked then, and copying every token's in
# case would be a cost per token. So the last steps are held on to as they came, up to a
# number of bytes, and nothing is copied or looked at before a flag asks.
"""The last steps that were scored, whole, and where in them a token is."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from monitor.records import StepBatch


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A step, and the rows (n,) of its tokens that are numbered from *first* on."""

    first: int
    step: StepBatch
    rows: NDArray[np.int64]
    n_bytes: int


class RecentSteps:
    """Steps by the numbers of their tokens: the oldest make room for the newest."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._steps: deque[_Step] = deque()
        self._n_bytes = 0

    def note(self, first: int, step: StepBatch, rows: NDArray[np.int64]) -> None:
        """
        Hold on to *step*.

        Args:
            first: Number of its first token; that of no other is as high.
            step: As scored.
            rows: Of shape (n,), the rows of the tokens from *first* on.
        """
        n_bytes = rows.nbytes + _n_bytes(step)
        self._steps.append(_Step(first, step, rows, n_bytes))
        self._n_bytes += n_bytes
        while self._n_bytes > self._max_bytes:
            self._n_bytes -= self._steps.popleft().n_bytes

    def find(self, number: int) -> tuple[StepBatch, int] | None:
        """Return a token's step and its row there; None if it is not held any more."""
        index = bisect_right(self._steps, number, key=attrgetter("first")) - 1
        if index < 0:
            return None
        found = self._steps[index]
        place = number - found.first
        if place >= len(found.rows):
            return None
        return found.step, int(found.rows[place])


def _n_bytes(step: StepBatch) -> int:
    arrays: Iterable[NDArray[np.float32]] = (
        *step.columns.values(),
        *step.activations.values(),
        *step.squared_norms.values(),
    )
    # A view keeps all that it is a view of.
    bases = {id(base): base.nbytes for base in map(_base, arrays)}
    return step.token_ids.nbytes + sum(bases.values())


def _base(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return array.base if isinstance(array.base, np.ndarray) else array
