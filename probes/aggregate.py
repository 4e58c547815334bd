# Rule 1: `update()` is pure. It returns the new state; the old one is as it was.
#
# Rule 2: no Python loop over tokens, except in the plain twins `aggregate()`.
#
# Rule 3: however a request is cut into segments, the statistic at its end is the
# same. A segment without rows leaves a request's state as it was.
"""Token evidence to a request statistic, online, in constant memory a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from probes.arrays import Float32, Float64, Int64
from probes.errors import ActivationShapeError

TOKENS = ("all", "answer")
"""Whose evidence an aggregator can count."""


@runtime_checkable
class Aggregator(Protocol):
    """
    One number a request, from the evidence of its tokens in order.

    `tests/contract/test_aggregators.py` holds every aggregator to this.
    """

    @property
    def name(self) -> str:
        """As in a bundle and a recipe."""
        ...

    @property
    def tokens(self) -> str:
        """
        Whose evidence counts: "all", or "answer", which is the prompt's last token
        and those after it. The caller leaves out the others: see `is_answer`.
        """
        ...

    @property
    def is_monotone(self) -> bool:
        """
        Whether the statistic never falls as tokens come.

        If so a request may be flagged while it runs; otherwise only at its end.
        """
        ...

    def start(self, n_requests: int) -> Float64:
        """State of shape (n_requests, state_size) before any token."""
        ...

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        """
        Take in one segment of tokens of each request.

        Args:
            state: Of shape (n_requests, state_size), from `start` or `update`.

            evidence: Of shape (n_tokens, 1), float32, finite; segment by segment.

            row_offsets: Of shape (n_requests + 1,), int64; request i has the rows
                from ``row_offsets[i]`` up to ``row_offsets[i + 1]``.

        Returns:
            The new state, and the statistic so far of shape (n_requests,),
            float64; -inf for a request without any token yet.

        Raises:
            ActivationShapeError: The arrays do not fit together, or evidence is
                not finite. *state* is as it was.
        """
        ...

    def aggregate(self, evidence: Float32) -> float:
        """The statistic of one request from all its evidence, (n_tokens, 1)."""
        ...

    def to_json(self) -> dict[str, str | float]:
        """Name and parameters; `aggregator_from_json` is the inverse."""
        ...


def is_answer(
    positions: Int64, n_prompt_tokens: Int64
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """
    Return which tokens the model answers at, (n_tokens,).

    The last token of the prompt is one: there the model has read everything, and
    decides on its first word.
    """
    return positions >= n_prompt_tokens - 1


@dataclass(frozen=True, slots=True)
class _Aggregator:
    """What all have: whose evidence counts."""

    tokens: str = field(default="all", kw_only=True)

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise ValueError(
                f"tokens: expected one of {list(TOKENS)}, got {self.tokens!r}"
            )

    def to_json(self) -> dict[str, str | float]:
        data: dict[str, str | float] = {"name": self.name}
        if self.tokens != TOKENS[0]:
            data["tokens"] = self.tokens
        return data


@dataclass(frozen=True, slots=True)
class Max(_Aggregator):
    """The highest evidence of any token."""

    name = "max"
    is_monotone = True

    def start(self, n_requests: int) -> Float64:
        return np.full((n_requests, 1), -np.inf)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        values, active = _segments(state, evidence, row_offsets)
        new = state.copy()
        if len(values):
            highest = np.maximum.reduceat(values, row_offsets[:-1][active])
            new[active, 0] = np.maximum(state[active, 0], highest)
        return new, new[:, 0].copy()

    def aggregate(self, evidence: Float32) -> float:
        return max(_values(evidence).tolist(), default=-np.inf)


@dataclass(frozen=True, slots=True)
class Mean(_Aggregator):
    """The mean evidence over all tokens."""

    name = "mean"
    is_monotone = False

    def start(self, n_requests: int) -> Float64:
        return np.zeros((n_requests, 2))

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        values, active = _segments(state, evidence, row_offsets)
        new = state.copy()
        if len(values):
            new[active, 0] += np.add.reduceat(values, row_offsets[:-1][active])
            new[:, 1] += np.diff(row_offsets)
        sums, counts = new[:, 0], new[:, 1]
        return new, np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)

    def aggregate(self, evidence: Float32) -> float:
        values = _values(evidence).tolist()
        return sum(values) / len(values) if values else -np.inf


@dataclass(frozen=True, slots=True)
class Last(_Aggregator):
    """The evidence of the last token."""

    name = "last"
    is_monotone = False

    def start(self, n_requests: int) -> Float64:
        return np.full((n_requests, 1), -np.inf)

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        values, active = _segments(state, evidence, row_offsets)
        new = state.copy()
        new[active, 0] = values[row_offsets[1:][active] - 1]
        return new, new[:, 0].copy()

    def aggregate(self, evidence: Float32) -> float:
        values = _values(evidence).tolist()
        return values[-1] if values else -np.inf


@dataclass(frozen=True, slots=True)
class EMAMax(_Aggregator):
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
        _Aggregator.__post_init__(self)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: expected a number in (0, 1], got {self.alpha}")

    def start(self, n_requests: int) -> Float64:
        return np.tile([0.0, -np.inf], (n_requests, 1))

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        values, active = _segments(state, evidence, row_offsets)
        new = state.copy()
        if len(values):
            averages = self._averages(values, state[:, 0], row_offsets)
            highest = np.maximum.reduceat(averages, row_offsets[:-1][active])
            new[active, 0] = averages[row_offsets[1:][active] - 1]
            new[active, 1] = np.maximum(state[active, 1], highest)
        return new, new[:, 1].copy()

    def _averages(
        self, values: Float64, previous: Float64, row_offsets: Int64
    ) -> Float64:
        """
        The moving average at each token, in log2(longest segment) passes.

        A prefix scan by doubling (Hillis and Steele 1986): after the pass with
        *reach*, each token has summed the 2 * reach tokens that end with it.
        """
        lengths = np.diff(row_offsets)
        starts, keep = row_offsets[:-1], 1 - self.alpha
        index_in_segment = np.arange(len(values)) - np.repeat(starts, lengths)
        averages = self.alpha * values
        averages[starts[lengths > 0]] += keep * previous[lengths > 0]
        reach = 1
        while reach < lengths.max():
            is_inside = index_in_segment[reach:] >= reach
            earlier = averages[:-reach] * keep**reach
            averages[reach:] += np.where(is_inside, earlier, 0)
            reach *= 2
        return averages

    def aggregate(self, evidence: Float32) -> float:
        average, highest = 0.0, -np.inf
        for value in _values(evidence).tolist():
            average = self.alpha * value + (1 - self.alpha) * average
            highest = max(highest, average)
        return highest

    def to_json(self) -> dict[str, str | float]:
        return _Aggregator.to_json(self) | {"alpha": self.alpha}


_FAMILIES: dict[str, tuple[type[Max | Mean | Last | EMAMax], tuple[str, ...]]] = {
    "max": (Max, ()),
    "mean": (Mean, ()),
    "last": (Last, ()),
    "ema_max": (EMAMax, ("alpha",)),
}


def aggregator_from_json(data: Mapping[str, object]) -> Aggregator:
    """
    The aggregator that *data* names, as `Aggregator.to_json` wrote it.

    >>> aggregator_from_json({"name": "ema_max", "alpha": 0.25})
    EMAMax(tokens='all', alpha=0.25)

    Raises:
        ValueError: The name or a parameter is unknown, or has an impossible value.
    """
    name = data.get("name")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ValueError(f"name: expected one of {sorted(_FAMILIES)}, got {name!r}")
    family, known = _FAMILIES[name]
    parameters: dict[str, Any] = {}
    for key, value in data.items():
        if key == "name":
            continue
        if key == "tokens":
            parameters[key] = value
            continue
        if key not in known:
            raise ValueError(f"{key}: unknown key; {name} knows {['tokens', *known]}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}: expected a number, got {value!r}")
        try:
            parameters[key] = float(value)
        except OverflowError:
            raise ValueError(
                f"{key}: expected a finite number, got an integer beyond float64"
            ) from None
    return family(**parameters)


def _values(evidence: Float32) -> Float64:
    if evidence.ndim != 2 or evidence.shape[1] != 1 or evidence.dtype != np.float32:
        raise ActivationShapeError(
            f"expected evidence (n_tokens, 1) float32, "
            f"got {evidence.shape} {evidence.dtype}"
        )
    # A NaN would win no comparison and so pass as clean.
    if not np.isfinite(evidence).all():
        raise ActivationShapeError("expected finite evidence, got NaN or infinity")
    return evidence[:, 0].astype(np.float64)


def _segments(
    state: Float64, evidence: Float32, row_offsets: Int64
) -> tuple[Float64, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """The evidence as (n_tokens,) float64, and which requests have any of it."""
    values = _values(evidence)
    lengths = np.diff(row_offsets)
    if (
        row_offsets.shape != (len(state) + 1,)
        or (int(row_offsets[0]), int(row_offsets[-1])) != (0, len(values))
        or (lengths < 0).any()
    ):
        raise ActivationShapeError(
            f"expected {len(state) + 1} rising row offsets from 0 to {len(values)}, "
            f"got {row_offsets.tolist()[:8]}"
        )
    return values, lengths > 0
