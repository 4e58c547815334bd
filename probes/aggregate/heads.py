"""Aggregators over the heads of an attention or MultiMax probe."""

from dataclasses import dataclass

import numpy as np

from probes.aggregate.protocol import BaseAggregator, check_count
from probes.aggregate.segments import Segments, checked
from probes.aggregate.softmax import add_weighted, plain_mean, start, weighted_mean
from probes.aggregate.windows import MAX_WINDOW
from probes.arrays import FLOAT32_MAX, Float32, Float64, Int64

MAX_HEADS = 64


@dataclass(frozen=True, slots=True)
class _Heads(BaseAggregator):
    """Evidence is a logit and a value a head: first all logits, then all values."""

    n_heads: int = 1

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        check_count("n_heads", self.n_heads, MAX_HEADS)

    @property
    def n_columns(self) -> int:
        return 2 * self.n_heads

    def token_scores(self, evidence: Float32) -> Float32:
        return _summed(evidence[:, self.n_heads :])

    def _segments(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Segments, Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, self.n_columns)
        values = segments.values
        return segments, values[:, : self.n_heads], values[:, self.n_heads :]

    def _plain_heads(self, evidence: Float32) -> list[tuple[Float64, Float64]]:
        columns = checked(evidence, self.n_columns).T
        return list(zip(columns[: self.n_heads], columns[self.n_heads :], strict=True))


@dataclass(frozen=True, slots=True)
class AttentionMean(_Heads):
    """
    Attention over the request's tokens: sum_h sum_j softmax(q_h)_j v_hj.

    As the attention probe of Kramar et al., arXiv 2601.11516, by an online softmax.

    Attributes:
        n_heads: H, heads of the probe.
    """

    name = "attention_mean"
    is_monotone = False

    def start(self, n_requests: int) -> Float64:
        return start(n_requests, self.n_heads)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments, logits, values = self._segments(state, evidence, row_offsets)
        new = add_weighted(state, segments, logits, values)
        return new, weighted_mean(new)

    def aggregate(self, evidence: Float32) -> float:
        heads = self._plain_heads(evidence)
        return sum(plain_mean(logits, values) for logits, values in heads)


@dataclass(frozen=True, slots=True)
class RollingAttentionMax(_Heads):
    """
    Attention within a rolling window: sum_h max_t sum_j softmax(q_h)_j v_hj.

    j runs over the last *window* tokens up to t, or as many as there are. The "max
    of rolling means" probe of Kramar et al., arXiv 2601.11516 (10 heads, window 10).

    Attributes:
        n_heads: H, heads of the probe.

        window: Tokens in a window.
    """

    window: int = 10

    name = "rolling_attention_max"
    is_monotone = True

    def __post_init__(self) -> None:
        _Heads.__post_init__(self)
        check_count("window", self.window, MAX_WINDOW)

    def start(self, n_requests: int) -> Float64:
        # A token that is not there weighs nothing.
        token = [-np.inf] * self.n_heads + [0.0] * self.n_heads
        heads = [-np.inf] * self.n_heads
        return np.tile([*token * (self.window - 1), *heads], (n_requests, 1))

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments, _, _ = self._segments(state, evidence, row_offsets)
        new = state.copy()
        if segments:
            new[segments.active] = self._slide(state[segments.active], segments)
        return new, new[:, -self.n_heads :].sum(axis=1)

    def _slide(self, old: Float64, segments: Segments) -> Float64:
        shape = (len(old), self.window - 1, self.n_columns)
        earlier = old[:, : -self.n_heads].reshape(shape)
        windows, after = segments.windows(earlier, self.window)
        logits, values = windows[:, : self.n_heads], windows[:, self.n_heads :]
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        means = (weights * values).sum(axis=2) / weights.sum(axis=2)
        highest = np.maximum(old[:, -self.n_heads :], segments.maxima(means))
        return np.hstack([after.reshape(len(old), -1), highest])

    def aggregate(self, evidence: Float32) -> float:
        ends = range(1, len(evidence) + 1)
        spans = [(max(0, end - self.window), end) for end in ends]
        return sum(
            max((plain_mean(q[a:b], v[a:b]) for a, b in spans), default=-np.inf)
            for q, v in self._plain_heads(evidence)
        )


@dataclass(frozen=True, slots=True)
class MultiMax(BaseAggregator):
    """
    Each head's highest value, summed: sum_h max_j v_hj.

    The MultiMax probe of Kramar et al., arXiv 2601.11516. Evidence is a value a head.

    Attributes:
        n_heads: H, heads of the probe.
    """

    n_heads: int = 1

    name = "multi_max"
    is_monotone = True

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        check_count("n_heads", self.n_heads, MAX_HEADS)

    @property
    def n_columns(self) -> int:
        return self.n_heads

    def token_scores(self, evidence: Float32) -> Float32:
        return _summed(evidence)

    def start(self, n_requests: int) -> Float64:
        return np.full((n_requests, self.n_heads), -np.inf)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, self.n_heads)
        new = state.copy()
        if segments:
            highest = segments.maxima(segments.values)
            new[segments.active] = np.maximum(state[segments.active], highest)
        return new, new.sum(axis=1)

    def aggregate(self, evidence: Float32) -> float:
        columns = checked(evidence, self.n_heads).T.tolist()
        return sum(max(column, default=-np.inf) for column in columns)


def _summed(values: Float32) -> Float32:
    """Sum over heads, (n_tokens,), kept within float32."""
    total = values.sum(axis=1, dtype=np.float64)
    kept: Float32 = np.clip(total, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    return kept
