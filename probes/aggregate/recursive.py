"""Recursions over tokens, and the maximum they reach: EMA and CUSUM."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probes.aggregate.protocol import BaseAggregator
from probes.aggregate.segments import Segments, checked
from probes.arrays import Float32, Float64, Int64


@dataclass(frozen=True, slots=True)
class EMAMax(BaseAggregator):
    """
    The highest value that an exponential moving average of the evidence reaches.

    E_0 = 0, E_j = alpha f(x_j) + (1 - alpha) E_{j-1}, and the statistic is the
    maximum over j >= 1 (Cunningham et al. 2025, as in Kramar et al.,
    arXiv 2601.11516, with alpha 0.5). One odd token counts for half.

    Attributes:
        alpha: Weight of the newest token, in (0, 1].
    """

    alpha: float = 0.5

    name = "ema_max"
    is_monotone = True

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a number in (0, 1], got {self.alpha}")

    def start(self, n_requests: int) -> Float64:
        return np.tile([0.0, -np.inf], (n_requests, 1))

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        return _reach(state, segments, self._averages)

    def _averages(self, segments: Segments, previous: Float64) -> Float64:
        """
        The moving average at each token, in log2(longest segment) passes.

        A prefix scan by doubling (Hillis and Steele 1986): after the pass with
        *reach*, each token has summed the 2 * reach tokens that end with it.
        """
        keep, index = 1 - self.alpha, segments.index_in_segment
        averages = self.alpha * segments.values[:, 0]
        averages[segments.starts] += keep * previous
        reach = 1
        while reach < segments.lengths.max():
            is_inside = index[reach:] >= reach
            earlier = averages[:-reach] * keep**reach
            averages[reach:] += np.where(is_inside, earlier, 0)
            reach *= 2
        return averages

    def aggregate(self, evidence: Float32) -> float:
        average, highest = 0.0, -np.inf
        for value in checked(evidence, 1)[:, 0].tolist():
            average = self.alpha * value + (1 - self.alpha) * average
            highest = max(highest, average)
        return highest


@dataclass(frozen=True, slots=True)
class CUSUM(BaseAggregator):
    """
    The highest value that the cumulative sum of the evidence's excess reaches.

    S_0 = 0, S_j = max(0, S_{j-1} + f(x_j) - drift), and the statistic is the
    maximum over j >= 1 (Page 1954). Many slightly odd tokens in a row add up.

    Attributes:
        drift: Evidence that is taken off each token: what is ordinary.
    """

    drift: float = 0.0

    name = "cusum"
    is_monotone = True

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        if not abs(self.drift) < np.inf:
            raise ValueError(f"drift: expected a finite number, got {self.drift}")

    def start(self, n_requests: int) -> Float64:
        return np.tile([0.0, -np.inf], (n_requests, 1))

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        return _reach(state, segments, self._sums)

    def _sums(self, segments: Segments, previous: Float64) -> Float64:
        """
        The cumulative sum at each token, by doubling as `EMAMax` does.

        A run of tokens takes S to max(floor, S + gain): two runs one after the other
        are again one, with a floor and a gain of its own.
        """
        index = segments.index_in_segment
        gains = segments.values[:, 0] - self.drift
        floors = np.zeros(len(gains))
        floors[segments.starts] = np.maximum(0, previous + gains[segments.starts])
        gains[segments.starts] = -np.inf  # Nothing before them counts any more.
        reach = 1
        while reach < segments.lengths.max():
            is_inside = index[reach:] >= reach
            risen = np.maximum(floors[reach:], floors[:-reach] + gains[reach:])
            longer = gains[:-reach] + gains[reach:]
            floors[reach:] = np.where(is_inside, risen, floors[reach:])
            gains[reach:] = np.where(is_inside, longer, gains[reach:])
            reach *= 2
        return floors

    def aggregate(self, evidence: Float32) -> float:
        total, highest = 0.0, -np.inf
        for value in checked(evidence, 1)[:, 0].tolist():
            total = max(0.0, total + value - self.drift)
            highest = max(highest, total)
        return highest


def _reach(
    state: Float64,
    segments: Segments,
    recursion: Callable[[Segments, Float64], Float64],
) -> tuple[Float64, Float64]:
    """Run *recursion* from state[:, 0] on; keep its last value and its maximum."""
    new = state.copy()
    if segments:
        values = recursion(segments, state[segments.active, 0])
        new[segments.active, 0] = values[segments.last_rows]
        highest = segments.maxima(values)
        new[segments.active, 1] = np.maximum(state[segments.active, 1], highest)
    return new, new[:, 1].copy()
