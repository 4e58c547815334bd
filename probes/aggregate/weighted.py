"""Means in which the loudest tokens count most: softmax-weighted, and top k."""

from dataclasses import dataclass

import numpy as np

from probes.aggregate.protocol import BaseAggregator, check_count
from probes.aggregate.segments import Segments, checked
from probes.aggregate.softmax import add_weighted, plain_mean, start, weighted_mean
from probes.arrays import Float32, Float64, Int64

MAX_K = 1024


@dataclass(frozen=True, slots=True)
class SoftmaxMean(BaseAggregator):
    """
    The mean evidence, each token weighted by the softmax of its own.

    sum_j w_j f(x_j) with w = softmax(f / temperature) over the request's tokens
    (McKenzie et al., arXiv 2506.10805). Between the mean and the maximum.

    Attributes:
        temperature: High is near the mean, low near the maximum; positive.
    """

    temperature: float = 1.0

    name = "softmax_mean"
    is_monotone = False

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        # Below it, evidence that float32 holds would overflow when divided by it.
        if not 1e-6 <= self.temperature < np.inf:
            raise ValueError(
                f"temperature: expected a number of at least 1e-6, "
                f"got {self.temperature}"
            )

    def start(self, n_requests: int) -> Float64:
        return start(n_requests, 1)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        logits = segments.values / self.temperature
        new = add_weighted(state, segments, logits, segments.values)
        return new, weighted_mean(new)

    def aggregate(self, evidence: Float32) -> float:
        values = checked(evidence, 1)[:, 0]
        return plain_mean(values / self.temperature, values)


@dataclass(frozen=True, slots=True)
class TopKMean(BaseAggregator):
    """
    The mean of the *k* highest evidences, or of all of a shorter request.

    Attributes:
        k: How many tokens count.
    """

    k: int = 5

    name = "top_k_mean"

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        check_count("k", self.k, MAX_K)

    @property
    def is_monotone(self) -> bool:
        return self.k == 1

    def start(self, n_requests: int) -> Float64:
        return np.full((n_requests, self.k), -np.inf)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        new = state.copy()
        if segments:
            new[segments.active] = self._highest(state[segments.active], segments)
        is_there = new > -np.inf
        sums = np.where(is_there, new, 0).sum(axis=1)
        counts = is_there.sum(axis=1)
        return new, np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)

    def _highest(self, kept: Float64, segments: Segments) -> Float64:
        """The k highest of *kept* (n_active, k) and the new rows, falling."""
        n_active = len(kept)
        owners = np.arange(n_active)
        owner = np.concatenate(
            [np.repeat(owners, self.k), np.repeat(owners, segments.lengths)]
        )
        values = np.concatenate([kept.ravel(), segments.values[:, 0]])
        order = np.lexsort((-values, owner))
        # Each has k old ones and its new ones; the first k of them are the highest.
        firsts = owners * self.k + segments.starts
        highest: Float64 = values[order][firsts[:, None] + np.arange(self.k)]
        return highest

    def aggregate(self, evidence: Float32) -> float:
        values = sorted(checked(evidence, 1)[:, 0].tolist(), reverse=True)[: self.k]
        return sum(values) / len(values) if values else -np.inf
