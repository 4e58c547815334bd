"""Where every live request stands with every detector: states and statistics."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probes.detector import Detector


class Standings:
    """
    One row (slot) a live request, so that a step updates all of them at once.

    Attributes:
        statistics: float64 of shape (n_slots, n_detectors); -inf before any token.
    """

    def __init__(self, detectors: Sequence[Detector], n_slots: int = 64) -> None:
        self._aggregators = tuple(d.aggregator for d in detectors)
        self._states = [a.start(n_slots) for a in self._aggregators]
        self.statistics: NDArray[np.float64] = np.full(
            (n_slots, len(self._aggregators)), -np.inf
        )
        self._free = list(reversed(range(n_slots)))

    def take(self) -> int:
        """Return a fresh slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        for aggregator, states in zip(self._aggregators, self._states, strict=True):
            states[slot] = aggregator.start(1)[0]
        self.statistics[slot] = -np.inf
        return slot

    def give_back(self, slot: int) -> None:
        """Free *slot* for another request."""
        self._free.append(slot)

    def update(
        self,
        slots: NDArray[np.int64],
        evidence: Sequence[NDArray[np.float32]],
        row_offsets: NDArray[np.int64],
        is_answer: NDArray[np.bool_],
    ) -> None:
        """
        Fold each detector's *evidence* (n_tokens, m) into its requests' states.

        Args:
            slots: Of shape (n_requests,).
            evidence: Per detector.
            row_offsets: Of shape (n_requests + 1,), into the evidence.
            is_answer: Of shape (n_tokens,); the tokens the model answers at.
        """
        n_before = np.concatenate([[0], is_answer.cumsum()])
        answer_offsets = n_before[row_offsets]
        for i, aggregator in enumerate(self._aggregators):
            is_all = aggregator.tokens == "all"
            states, statistics = aggregator.update(
                self._states[i][slots],
                evidence[i] if is_all else evidence[i][is_answer],
                row_offsets if is_all else answer_offsets,
            )
            self._states[i][slots] = states
            self.statistics[slots, i] = statistics

    def _grow(self) -> None:
        n_slots = len(self.statistics)
        self._states = [
            np.concatenate([states, aggregator.start(n_slots)])
            for aggregator, states in zip(self._aggregators, self._states, strict=True)
        ]
        more = np.full_like(self.statistics, -np.inf)
        self.statistics = np.concatenate([self.statistics, more])
        self._free = list(reversed(range(n_slots, 2 * n_slots)))
