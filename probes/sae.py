"""SAE features as a detector: the watched encoder rows, and the activation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32, Int64, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name
from probes.sae_formats.activations import activate
from probes.sae_formats.record import SAE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAEFeatureDetector:
    """
    Evidence is a weighted sum of a few features' activations.

    ReLU and JumpReLU act on each feature alone, so a subset of them is exact
    (TopK is not: it needs every feature, and is refused by the readers).

    Attributes:
        name: What the features mean. Used as a label value.

        hook_point: Where the SAE reads, ``blocks.L.hook_resid_post``.

        encoder: Encoder rows of the watched features, (k, d_model), float32.

        bias: Their biases of shape (k,), float32, the decoder's bias folded in.

        thresholds: JumpReLU thresholds of shape (k,), float32; zeros for ReLU.

        activation: ``"relu"`` or ``"jumprelu"``.

        features: Which features of the SAE they are, of shape (k,), int64.

        feature_weights: Weight of each in the evidence, of shape (k,), float32.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    encoder: Float32
    bias: Float32
    thresholds: Float32
    activation: str
    features: Int64
    feature_weights: Float32
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"SAE detector {self.name!r}"
        check_array(f"{what}: encoder", self.encoder, ("k", "d_model"))
        k = len(self.encoder)
        check_array(f"{what}: thresholds", self.thresholds, (k,))
        check_array(f"{what}: features", self.features, (k,), np.int64)
        check_array(f"{what}: feature_weights", self.feature_weights, (k,))
        if self.activation not in ("relu", "jumprelu"):
            raise ValueError(
                f"{what}: activation: expected 'relu' or 'jumprelu', "
                f"got {self.activation!r}"
            )
        check_aggregator(what, self.aggregator, 1)
        projection = Projection(
            hook_point=self.hook_point, weight=self.encoder, bias=self.bias
        )
        object.__setattr__(self, "projections", (projection,))

    @classmethod
    def from_sae(
        cls,
        sae: SAE,
        *,
        name: str,
        features: Sequence[int],
        aggregator: Aggregator,
        feature_weights: Sequence[float] | None = None,
    ) -> Self:
        """
        Watch *features* of *sae*, each with weight 1 unless said.

        Raises:
            ValueError: A feature is not in the SAE, or is there twice, the weights
                are not one a feature, or the SAE is not of a kind that is read here.
        """
        _check_kind(f"SAE detector {name!r}", sae)
        outside = [f for f in features if not 0 <= f < sae.d_sae]
        if not features or outside or len(set(features)) < len(features):
            raise ValueError(
                f"SAE detector {name!r}: features: expected different indices "
                f"from 0 to {sae.d_sae - 1}, got {list(features)}"
            )
        index = np.array(features, dtype=np.int64)
        weights = [1.0] * len(index) if feature_weights is None else feature_weights
        thresholds = np.zeros(sae.d_sae) if sae.threshold is None else sae.threshold
        return cls(
            name=name,
            hook_point=sae.hook_point,
            encoder=np.ascontiguousarray(sae.W_enc[:, index].T),
            bias=sae.b_enc[index],
            thresholds=thresholds[index].astype(np.float32),
            activation="relu" if sae.threshold is None else "jumprelu",
            features=index,
            feature_weights=np.array(weights, dtype=np.float32),
            aggregator=aggregator,
        )

    def head(self, columns: Float32) -> Float32:
        """Activate, weigh, sum; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        is_relu = self.activation == "relu"
        activations = activate(columns, None if is_relu else self.thresholds)
        evidence = activations.astype(np.float64) @ self.feature_weights
        clipped = np.clip(evidence, -FLOAT32_MAX, FLOAT32_MAX)
        return clipped.astype(np.float32)[:, None]


def _check_kind(what: str, sae: SAE) -> None:
    if sae.activation not in ("relu", "jumprelu") or sae.input_norm != "none":
        raise ValueError(
            f"{what}: expected a relu or jumprelu SAE of unnormalised activations, "
            f"got {sae.activation} with input_norm {sae.input_norm!r}"
        )
