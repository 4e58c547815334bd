"""Distance to the k-th nearest of a few benign activations."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32, Float64, check_array
from probes.centred import N_MEAN_PARTS, mean_rows, squared_distance_to_mean
from probes.detector import Projection, check_aggregator, check_columns, check_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NearestNeighbours:
    """
    Evidence is the distance to the k-th nearest activation of a benign coreset.

    Euclidean, or between directions where *is_normalised*: x / |x| against unit
    vectors (Sun et al. 2022, arXiv 2204.06507). One column a coreset row c:

        |x - c|^2 = |x - m|^2 - 2 (c - m).(x - m) + |c - m|^2

    about the coreset's mean m, so that only what lies between x and the coreset
    cancels, and not what both are far from the origin by (see `probes.centred`).

    Attributes:
        name: Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        coreset: Benign activations of shape (n, d_model), float32; unit vectors
            where *is_normalised*.

        k: Which nearest one, from 1 to n.

        is_normalised: Whether directions are compared.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    coreset: Float32
    k: int
    is_normalised: bool
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)
    _mean: Float64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"nearest neighbours {self.name!r}"
        check_aggregator(what, self.aggregator, 1)
        check_array(f"{what}: coreset", self.coreset, ("n", "d_model"))
        if not 1 <= self.k <= len(self.coreset):
            raise ValueError(
                f"{what}: k: expected 1 to {len(self.coreset)}, got {self.k}"
            )
        wide = self.coreset.astype(np.float64)
        if self.is_normalised and not np.allclose(np.linalg.norm(wide, axis=1), 1):
            raise ValueError(f"{what}: coreset: expected unit vectors")
        mean = np.zeros(wide.shape[1]) if self.is_normalised else wide.mean(axis=0)
        object.__setattr__(self, "_mean", mean)
        object.__setattr__(self, "projections", (self._projection(wide - mean),))

    def head(self, columns: Float32) -> Float32:
        """Distances, and of each token the k-th; see `probes.detector.Detector`."""
        check_columns(self, columns)
        wide = columns.astype(np.float64)
        squares = self._cosines(wide) if self.is_normalised else self._squares(wide)
        # A NaN sorts last and might not be the k-th.
        nearest = np.partition(squares, self.k - 1, axis=1)[:, self.k - 1]
        nearest[np.isnan(wide).any(axis=1)] = np.nan
        # Below zero by rounding only.
        distance = np.sqrt(np.maximum(nearest, 0))
        evidence: Float32 = np.minimum(distance, FLOAT32_MAX).astype(np.float32)
        return evidence[:, None]

    def _squares(self, columns: Float64) -> Float64:
        """Squared distance to each coreset row, (n_tokens, n)."""
        n = len(self.coreset)
        to_mean = squared_distance_to_mean(columns[:, n:-1], columns[:, -1], self._mean)
        centred = self.coreset.astype(np.float64) - self._mean
        lengths = np.einsum("nd,nd->n", centred, centred)
        squares: Float64 = to_mean[:, None] - 2 * columns[:, :n] + lengths
        return squares

    def _cosines(self, columns: Float64) -> Float64:
        """Squared distance between unit vectors, 2 - 2 cos, (n_tokens, n)."""
        length = np.sqrt(columns[:, -1])
        # The zero vector has no direction: as far from all as one at a right angle.
        cosines = columns[:, :-1] / np.where(length > 0, length, 1.0)[:, None]
        squares: Float64 = 2 - 2 * cosines
        return squares

    def _projection(self, centred: Float64) -> Projection:
        rows, biases = centred, -centred @ self._mean
        if not self.is_normalised:
            rows = np.vstack([rows, mean_rows(self._mean)])
            biases = np.concatenate([biases, np.zeros(N_MEAN_PARTS)])
        return Projection(
            hook_point=self.hook_point,
            weight=rows.astype(np.float32),
            bias=biases.astype(np.float32),
            wants_norm=True,
        )
