"""Mahalanobis distance to benign activations, at full or low rank."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32, check_array
from probes.centred import N_MEAN_PARTS, mean_rows, squared_distance_to_mean
from probes.detector import Projection, check_aggregator, check_columns, check_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mahalanobis:
    """
    Squared Mahalanobis distance of a token from the benign mean.

    With eigenvectors v_i and eigenvalues l_i of the benign covariance, and mu
    the benign mean (Lee et al. 2018, arXiv 1807.03888, one class):

        sum_i ((x - mu) . v_i)^2 / l_i  +  residual energy / residual variance

    where the residual energy |x - mu|^2 - sum_i ((x - mu) . v_i)^2 is what lies
    outside the k directions, all of which are given one variance (probabilistic
    PCA, Tipping and Bishop 1999). At full rank, k = d_model, there is no residual
    and the first sum is the whole distance.

    |x - mu|^2 cancels (see `probes.centred`), so the head runs in float64. What
    remains is proportional to |x|^2 / |x - mu|^2: measured on a CPU (2026-11-23,
    d_model 64 to 4096), below 1e-6 of the distance times that ratio, so below 1e-4
    up to a ratio of 100.

    Attributes:
        name: Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        mean: Benign mean of shape (d_model,), float32.

        directions: Orthonormal directions of shape (k, d_model), float32.

        variances: Benign variance along each, of shape (k,), float32, positive.

        residual_variance: Benign variance of each other direction, positive;
            not used at full rank.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    mean: Float32
    directions: Float32
    variances: Float32
    residual_variance: float
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"Mahalanobis {self.name!r}"
        check_array(f"{what}: mean", self.mean, ("d_model",))
        check_array(f"{what}: directions", self.directions, ("k", len(self.mean)))
        check_array(f"{what}: variances", self.variances, (len(self.directions),))
        if not (self.variances > 0).all():
            raise ValueError(f"{what}: variances: expected positive numbers")
        if not 0 < self.residual_variance < np.inf:
            raise ValueError(
                f"{what}: residual_variance: expected a positive number, "
                f"got {self.residual_variance}"
            )
        if not 1 <= self.rank <= len(self.mean):
            raise ValueError(
                f"{what}: directions: expected 1 to {len(self.mean)}, got {self.rank}"
            )
        check_aggregator(what, self.aggregator, 1)
        object.__setattr__(self, "projections", (self._projection(),))

    @property
    def rank(self) -> int:
        """k, the number of directions with a variance of their own."""
        return len(self.directions)

    @property
    def is_full_rank(self) -> bool:
        return self.rank == len(self.mean)

    def head(self, columns: Float32) -> Float32:
        """Distance of each token; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        wide = columns.astype(np.float64)
        whitened_squares = wide[:, : self.rank] ** 2
        distance = whitened_squares.sum(axis=1)
        if not self.is_full_rank:
            energy = squared_distance_to_mean(
                wide[:, self.rank : -1], wide[:, -1], self.mean.astype(np.float64)
            )
            energy -= whitened_squares @ self.variances.astype(np.float64)
            # Below zero by rounding only: it is a sum of squares.
            distance += np.maximum(energy, 0) / self.residual_variance
        evidence: Float32 = np.minimum(distance, FLOAT32_MAX).astype(np.float32)
        return evidence[:, None]

    def _projection(self) -> Projection:
        mean = self.mean.astype(np.float64)
        scales = np.sqrt(self.variances.astype(np.float64))
        rows = self.directions.astype(np.float64) / scales[:, None]
        biases = -rows @ mean
        if not self.is_full_rank:
            rows = np.vstack([rows, mean_rows(mean)])
            biases = np.concatenate([biases, np.zeros(N_MEAN_PARTS)])
        return Projection(
            hook_point=self.hook_point,
            weight=rows.astype(np.float32),
            bias=biases.astype(np.float32),
            wants_norm=not self.is_full_rank,
        )
