"""The score shadows of several detector sets: what each said, looked up for its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitor.live import LiveRequest
from monitor.records import Flag, StepBatch
from monitor.scoring import REPEATED, SCORED, ScoredRows
from monitor.set_scores import SetScores
from monitor.sets import WatchedSets
from monitor.sharing import Shadowed, Sharing, Traced


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedTokens:
    """
    What is known of the tokens of a step that came from the prefix cache.

    Attributes:
        traced: Which prefix each row stands behind.

        each: By a set's number, of its own requests (False) and of those that it
            scores beside their own set (True).
    """

    traced: Traced
    each: Mapping[tuple[int, bool], Shadowed]

    def counts(self) -> dict[int, tuple[int, int]]:
        """Return (found, not found) by request index, each by its own set."""
        return {
            index: found
            for (_, is_beside), one in self.each.items()
            if not is_beside
            for index, found in one.counts().items()
        }

    def take_in(
        self, batch: StepBatch, sets: WatchedSets, requests: Sequence[LiveRequest]
    ) -> list[Flag]:
        """Fold in what is known, before the rows that come after."""
        self.traced.note(batch, requests)
        flags: list[Flag] = []
        for (number, is_beside), shadowed in self.each.items():
            if not shadowed.is_found.any():
                continue
            cached = replace(
                batch,
                request_ids=tuple(batch.request_ids[i] for i in shadowed.indices),
                row_offsets=shadowed.offsets,
                n_prompt_tokens=batch.n_prompt_tokens[shadowed.indices],
                token_ids=shadowed.token_ids,
            )
            found = ScoredRows(
                fates=np.where(shadowed.is_found, SCORED, REPEATED).astype(np.uint8),
                rows=np.flatnonzero(shadowed.is_found),
                evidence=shadowed.evidence,
            )
            flags += sets.take_in_cached(
                number,
                cached,
                found,
                [requests[i] for i in shadowed.indices],
                np.repeat(np.arange(len(shadowed.indices)), np.diff(shadowed.offsets)),
                shadowed.positions,
                is_beside=is_beside,
            )
        return flags


class SetSharing:
    """Keeps what each set says of a KV slot, and looks up what it said before."""

    def __init__(self, sets: WatchedSets, seed: int) -> None:
        self._sets = sets
        self._sharing = Sharing(seed)

    def exchange(
        self,
        batch: StepBatch,
        scored: SetScores,
        positions: NDArray[np.int64],
        known: Sequence[LiveRequest | None],
        seen_until: NDArray[np.int64],
    ) -> CachedTokens:
        """
        Keep what *scored* says, and look up the cached tokens of *batch*.

        Args:
            batch: A step whose KV slots are known.
            scored: Of *batch*.
            positions: Of shape (n_rows,).
            known: What is known of each request.
            seen_until: Of shape (n_requests,); positions below are counted already.
        """
        request_of_row = scored.request_of_row
        traced = self._sharing.trace(batch, positions, request_of_row, known)
        each: dict[tuple[int, bool], Shadowed] = {}
        # Stored first: vLLM shares a block in the very step that fills it.
        for number, one in scored.each.items():
            shadow = self._sets.score_shadow_of(number)
            self._sharing.store(shadow, batch, traced, one, request_of_row)
            is_own = scored.owners == number
            wanted = {False: is_own}
            if number == self._sets.shadow:
                wanted[True] = ~is_own
            for is_beside, which in wanted.items():
                found = self._sharing.fetch(shadow, batch, traced, seen_until, which)
                if found is not None:
                    each[number, is_beside] = found
        return CachedTokens(traced=traced, each=each)
