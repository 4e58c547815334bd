"""Layer-delta consistency: what a block adds, against what it adds to benign tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64, check_array
from probes.detector import (
    Projection,
    activations_at,
    check_aggregator,
    check_columns,
    check_name,
)
from probes.errors import ActivationShapeError
from probes.layer_scores import LayerScores, check_rising, named_pairs

_MAX_VALUES = 1 << 18
"""Differences held at once: 2 MiB of float64, which stay in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerDelta:
    """
    How unlike benign ones the differences between layers are (LCF, arXiv 2604.24542).

    With h_0, ..., h_L a token's activations at consecutive hook points:

        m_l = |(h_{l+1} - h_l - mu_l) / sd_l|

    and the evidence is the distance of (m_0, ..., m_{L-1}) from benign ones, see
    `LayerScores`. The paper scores a prompt's last token; here every token is, and
    the aggregator is free.

    The length of a difference needs both activations whole: |h_{l+1}| and |h_l| leave
    their product open, and as columns it would be d_model rows at each hook point. So
    this is an `ActivationDetector`, of 5 L d_model operations a token;
    `LayerDeltaDirections` is what columns can say.

    Attributes:
        name: Used as a label value.

        hook_points: Where it reads, by rising layer, L + 1 of them.

        means: mu, the benign mean of each difference, (L, d_model), float32.

        deviations: sd, of each coordinate of it, (L, d_model), float32, positive.

        scores: What is benign of the L lengths.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_points: tuple[str, ...]
    means: Float32
    deviations: Float32
    scores: LayerScores
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"layer delta {self.name!r}"
        check_rising(what, self.hook_points)
        n = len(self.hook_points) - 1
        check_array(f"{what}: means", self.means, (n, "d_model"))
        check_array(f"{what}: deviations", self.deviations, self.means.shape)
        if not (self.deviations > 0).all():
            raise ValueError(f"{what}: deviations: expected positive numbers")
        check_array(f"{what}: scores.means", self.scores.means, (n,))
        check_aggregator(what, self.aggregator, 1)
        # Nothing linear is wanted. A row of zeros tells finite activations from others.
        projections = [
            Projection(
                hook_point=hook_point,
                weight=np.zeros((1, self.means.shape[1]), dtype=np.float32),
                bias=np.zeros(1, dtype=np.float32),
            )
            for hook_point in self.hook_points
        ]
        object.__setattr__(self, "projections", tuple(projections))

    def head(self, columns: Float32) -> NoReturn:
        """
        Refuse: see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: Always.
        """
        check_columns(self, columns)
        raise ActivationShapeError(
            f"detector {self.name!r} expects whole activations: nothing less says how "
            f"long the difference of two is"
        )

    def head_on_activations(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Float32:
        """
        Evidence of each token; see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: The arrays do not fit.
        """
        check_columns(self, columns)
        return self.scores.distance(self._scores(columns, activations))

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> dict[str, float]:
        """By pair of hook points; see `probes.contributions.Contributing`."""
        check_columns(self, columns)
        said = self.scores.contributions(self._scores(columns, activations)[0])
        return named_pairs(self.hook_points, said)

    def _scores(self, columns: Float32, activations: Mapping[str, Float32]) -> Float64:
        """m of each token and layer, (n_tokens, L)."""
        d_model = self.means.shape[1]
        rows = [activations_at(h, d_model, activations) for h in self.hook_points]
        if {len(part) for part in rows} != {len(columns)}:
            raise ActivationShapeError(
                f"detector {self.name!r} expects as many activations as columns at "
                f"each hook point, got {[len(part) for part in rows]} and "
                f"{len(columns)}"
            )
        return self._lengths(rows)

    def _lengths(self, rows: list[Float32]) -> Float64:
        lengths = np.empty((len(rows[0]), len(self.means)))
        n_at_once = max(1, _MAX_VALUES // self.means.shape[1])
        means, scales = self.means.astype(np.float64), 1 / self.deviations.astype(float)
        for start in range(0, len(lengths), n_at_once):
            some = slice(start, start + n_at_once)
            for layer, (mean, scale) in enumerate(zip(means, scales, strict=True)):
                delta = np.subtract(
                    rows[layer + 1][some], rows[layer][some], dtype=np.float64
                )
                delta -= mean
                delta *= scale
                lengths[some, layer] = np.sqrt(np.einsum("td,td->t", delta, delta))
        return lengths
