"""What the monitor remembers of one live request."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitor.coverage import Coverage, Totals
from monitor.records import LossReason

_FIRST_CAPACITY = 256  # Tokens; doubled when full. A short chat turn fits.


class History:
    """
    Evidence of each token from position 0, and its token id.

    Grows by doubling, so that a decode step costs one write and no allocation.
    """

    __slots__ = ("_scores", "_token_ids")

    def __init__(self, n_detectors: int) -> None:
        self._scores = np.full((n_detectors, 0), np.nan, dtype=np.float32)
        self._token_ids = np.full(0, -1, dtype=np.int32)

    def write(
        self,
        positions: NDArray[np.int64],
        scores: NDArray[np.float32],
        token_ids: NDArray[np.int32],
    ) -> None:
        """
        Keep *scores* of shape (n_detectors, n_tokens) at *positions*.

        Positions in between that are never written read as NaN and -1.
        """
        self._reserve(int(positions[-1]) + 1)
        self._scores[:, positions] = scores
        self._token_ids[positions] = token_ids

    def scores(self, detector: int, n_tokens: int) -> NDArray[np.float32]:
        """Return a copy of shape (n_tokens,) of one detector's evidence."""
        scores = np.full(n_tokens, np.nan, dtype=np.float32)
        kept = self._scores[detector, :n_tokens]
        scores[: len(kept)] = kept
        return scores

    def token_ids(self, n_tokens: int) -> NDArray[np.int32]:
        """Return a copy of shape (n_tokens,) of the token ids, -1 where unknown."""
        token_ids = np.full(n_tokens, -1, dtype=np.int32)
        kept = self._token_ids[:n_tokens]
        token_ids[: len(kept)] = kept
        return token_ids

    def _reserve(self, n_tokens: int) -> None:
        n_more = n_tokens - len(self._token_ids)
        if n_more <= 0:
            return
        n_more = max(n_more, len(self._token_ids), _FIRST_CAPACITY)
        self._scores = np.pad(
            self._scores, ((0, 0), (0, n_more)), constant_values=np.nan
        )
        self._token_ids = np.pad(self._token_ids, (0, n_more), constant_values=-1)


@dataclass(slots=True)
class LiveRequest:
    """
    A request that has not ended.

    Attributes:
        slot: Its row in the aggregators' states.

        next_position: Every position below it was scored, lost, or counted in an
            earlier life of the request; none above it was seen.

        is_whole: False if tokens of it may be lost that no count of its own shows,
            or if an earlier part of it was abandoned.
    """

    slot: int
    history: History
    next_position: int = 0
    n_prompt_tokens: int = 0
    last_step: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    flagged: set[str] = field(default_factory=set)
    is_whole: bool = True

    def lose_until(
        self, position: int, reason: LossReason, totals: Totals, *, n_counted: int = 0
    ) -> None:
        """
        Count the positions from the next one up to *position* as lost.

        *n_counted* of them are in the *totals* already.
        """
        n_tokens = position - self.next_position
        if n_tokens <= 0:
            return
        self.next_position = position
        for coverage, n in (
            (self.coverage, n_tokens),
            (totals.tokens, n_tokens - n_counted),
        ):
            coverage.n_expected += n
            coverage.n_lost[reason] += n

    def count_rows(
        self, n_rows: int, reason: LossReason | None, totals: Totals
    ) -> None:
        """Advance by *n_rows* positions: lost for *reason*, or scored if None."""
        self.next_position += n_rows
        for coverage in (self.coverage, totals.tokens):
            coverage.n_expected += n_rows
            if reason is None:
                coverage.n_scored += n_rows
            else:
                coverage.n_lost[reason] += n_rows


def peak(scores: NDArray[np.float32], first: int) -> int:
    """
    Return the position of the highest of *scores* from *first* on.

    Of all scores if none is known from there on: a sender may have named a longer
    prompt after what it calls a prompt now was scored as an answer.
    """
    if np.isnan(scores[first:]).all():
        first = 0
    return first + int(np.nanargmax(scores[first:]))
