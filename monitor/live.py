"""What the monitor remembers of one live request."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitor.coverage import Coverage, Totals
from monitor.records import LossReason


@dataclass(slots=True)
class LiveRequest:
    """
    A request that has not ended.

    Attributes:
        slot: Its row in the detectors' states; -1 if nothing of it was seen.

        number: No other request has it.

        since: The token that was numbered so, or those after it, are its first; see
            `TokenHistory`.

        next_position: Every position below it was scored, lost, or counted in an
            earlier life of the request; none above it was seen.

        is_whole: False if tokens of it may be lost that no count of its own shows,
            or if an earlier part of it was abandoned.

        adapter: Its LoRA adapter; "" for none.

        prefix_hash: Of its tokens below *hashed_until*, which is -1 where some of them
            are not known.

        set_number: Of the detector set that scores it, from its first token to its
            last; -1 if nothing of it was seen.

        beside: What the shadow set remembers of it, if it scores it too.
    """

    slot: int
    number: int
    since: int = 0
    next_position: int = 0
    n_prompt_tokens: int = 0
    last_step: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    flagged: set[str] = field(default_factory=set)
    is_whole: bool = True
    adapter: str = ""
    prefix_hash: int = 0
    hashed_until: int = -1
    set_number: int = -1
    beside: "LiveRequest | None" = None

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

    def count_cached(self, n_found: int, n_missing: int, totals: Totals) -> None:
        """Advance over tokens from the prefix cache: in the score shadow, or not."""
        self.next_position += n_found + n_missing
        for coverage in (self.coverage, totals.tokens):
            coverage.n_expected += n_found + n_missing
            coverage.n_shadowed += n_found
            coverage.n_lost[LossReason.PREFIX_CACHED] += n_missing

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
    prompt after what it calls a prompt now was scored as an answer. The last position
    if no score is kept at all.
    """
    if np.isnan(scores[first:]).all():
        first = 0
    if np.isnan(scores).all():
        return len(scores) - 1
    return first + int(np.nanargmax(scores[first:]))
