"""Bilinear features: products of two directions, weighed and summed."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BilinearProbe:
    """
    Evidence is ``sum_i w_i (l_i.x + a_i) (r_i.x + b_i) + bias``.

    What a linear probe cannot say, that two things are there together. The latents
    of a bilinear autoencoder are such products.

    Attributes:
        name: What the features mean. Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        left: l of shape (k, d_model), float32.

        left_bias: a of shape (k,), float32.

        right: r of shape (k, d_model), float32.

        right_bias: b of shape (k,), float32.

        feature_weights: w of shape (k,), float32.

        bias: Added to the sum.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    left: Float32
    left_bias: Float32
    right: Float32
    right_bias: Float32
    feature_weights: Float32
    bias: float
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"bilinear probe {self.name!r}"
        check_aggregator(what, self.aggregator, 1)
        check_array(f"{what}: left", self.left, ("k", "d_model"))
        check_array(f"{what}: right", self.right, self.left.shape)
        for key in ("left_bias", "right_bias", "feature_weights"):
            check_array(f"{what}: {key}", getattr(self, key), (len(self.left),))
        if not np.isfinite(self.bias):
            raise ValueError(f"{what}: bias: expected a number, got {self.bias}")
        projection = Projection(
            hook_point=self.hook_point,
            weight=np.concatenate([self.left, self.right]),
            bias=np.concatenate([self.left_bias, self.right_bias]),
        )
        object.__setattr__(self, "projections", (projection,))

    def head(self, columns: Float32) -> Float32:
        """Products, weighed and summed; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        left, right = np.split(columns.astype(np.float64), 2, axis=1)
        total = (left * right) @ self.feature_weights.astype(np.float64) + self.bias
        clipped = np.clip(total, -FLOAT32_MAX, FLOAT32_MAX)
        evidence: Float32 = clipped.astype(np.float32)
        return evidence[:, None]
