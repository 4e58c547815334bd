"""Maximum, mean and last."""

from dataclasses import dataclass

import numpy as np

from probes.aggregate.protocol import BaseAggregator
from probes.aggregate.segments import Segments, checked
from probes.arrays import Float32, Float64, Int64


@dataclass(frozen=True, slots=True)
class Max(BaseAggregator):
    """The highest evidence of any token."""

    name = "max"
    is_monotone = True

    def start(self, n_requests: int) -> Float64:
        return np.full((n_requests, 1), -np.inf)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        new = state.copy()
        if segments:
            highest = segments.maxima(segments.values)
            new[segments.active] = np.maximum(state[segments.active], highest)
        return new, new[:, 0].copy()

    def aggregate(self, evidence: Float32) -> float:
        return max(checked(evidence, 1)[:, 0].tolist(), default=-np.inf)


@dataclass(frozen=True, slots=True)
class Mean(BaseAggregator):
    """The mean evidence over all tokens."""

    name = "mean"
    is_monotone = False

    def start(self, n_requests: int) -> Float64:
        return np.zeros((n_requests, 2))

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        new = state.copy()
        if segments:
            new[segments.active, 0] += segments.sums(segments.values)[:, 0]
            new[segments.active, 1] += segments.lengths
        sums, counts = new[:, 0], new[:, 1]
        return new, np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)

    def aggregate(self, evidence: Float32) -> float:
        values = checked(evidence, 1)[:, 0].tolist()
        return sum(values) / len(values) if values else -np.inf


@dataclass(frozen=True, slots=True)
class Last(BaseAggregator):
    """The evidence of the last token."""

    name = "last"
    is_monotone = False

    def start(self, n_requests: int) -> Float64:
        return np.full((n_requests, 1), -np.inf)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        new = state.copy()
        new[segments.active] = segments.values[segments.last_rows]
        return new, new[:, 0].copy()

    def aggregate(self, evidence: Float32) -> float:
        values = checked(evidence, 1)[:, 0].tolist()
        return values[-1] if values else -np.inf
