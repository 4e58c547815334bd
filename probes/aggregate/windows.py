"""Means over a window that slides along the request, and the highest of them."""

from dataclasses import dataclass

import numpy as np

from probes.aggregate.protocol import BaseAggregator, check_count
from probes.aggregate.segments import Segments, checked
from probes.arrays import Float32, Float64, Int64

MAX_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class SlidingMeanMax(BaseAggregator):
    """
    The highest mean over *window* neighbouring tokens.

    z_t = mean of the last M logits for t >= M, and the maximum over t (SWiM,
    Cunningham et al., arXiv 2601.04603, with M 16). A request shorter than the
    window has one mean, over all of it, and is therefore judged at its end.

    Attributes:
        window: Tokens in a window, M.
    """

    window: int = 16

    name = "sliding_mean_max"

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        check_count("window", self.window, MAX_WINDOW)

    @property
    def is_monotone(self) -> bool:
        return self.window == 1

    def start(self, n_requests: int) -> Float64:
        return _start(n_requests, self.window)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        new = _slide(state, segments, self.window, least=self.window)
        counts, highest = new[:, -2], new[:, -1]
        so_far = new[:, :-2].sum(axis=1) / np.maximum(counts, 1)
        short = np.where(counts > 0, so_far, -np.inf)
        return new, np.where(counts < self.window, short, highest)

    def aggregate(self, evidence: Float32) -> float:
        values = checked(evidence, 1)[:, 0].tolist()
        n = min(self.window, len(values))
        ends = range(n, len(values) + 1)
        return max(
            (sum(values[end - n : end]) / n for end in ends if n), default=-np.inf
        )


@dataclass(frozen=True, slots=True)
class RollingMeanMax(BaseAggregator):
    """
    The highest mean over the last *window* tokens, or as many as there are.

    As `SlidingMeanMax`, but the first tokens have means of their own over fewer
    tokens, so that a request can be flagged at once; an odd first token counts whole.

    Attributes:
        window: Tokens in a window.
    """

    window: int = 10

    name = "rolling_mean_max"
    is_monotone = True

    def __post_init__(self) -> None:
        BaseAggregator.__post_init__(self)
        check_count("window", self.window, MAX_WINDOW)

    def start(self, n_requests: int) -> Float64:
        return _start(n_requests, self.window)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        segments = Segments.of(state, evidence, row_offsets, 1)
        new = _slide(state, segments, self.window, least=1)
        return new, new[:, -1].copy()

    def aggregate(self, evidence: Float32) -> float:
        values = checked(evidence, 1)[:, 0].tolist()
        ends = range(1, len(values) + 1)
        windows = (values[max(0, end - self.window) : end] for end in ends)
        return max((sum(w) / len(w) for w in windows), default=-np.inf)


def _start(n_requests: int, window: int) -> Float64:
    """The window's earlier tokens, how many tokens came, and the highest mean."""
    return np.tile([*[0.0] * (window - 1), 0.0, -np.inf], (n_requests, 1))


def _slide(state: Float64, segments: Segments, window: int, least: int) -> Float64:
    """The state after *segments*; windows of fewer than *least* tokens do not count."""
    new = state.copy()
    if not segments:
        return new
    active = segments.active
    earlier, counts = state[active, :-2, None], state[active, -2]
    windows, after = segments.windows(earlier, window)
    n_tokens = segments.spread(counts) + segments.index_in_segment + 1
    means = windows[:, 0].sum(axis=1) / np.minimum(n_tokens, window)
    highest = segments.maxima(np.where(n_tokens < least, -np.inf, means))
    new[active, :-2] = after[:, :, 0]
    new[active, -2] = counts + segments.lengths
    new[active, -1] = np.maximum(state[active, -1], highest)
    return new
