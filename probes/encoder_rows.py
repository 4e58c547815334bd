"""Some rows of an SAE's encoder as projections, and their pre-activations again."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from probes.arrays import FLOAT32_MAX, Float32, Float64, Int64
from probes.detector import Projection
from probes.sae_formats.record import SAE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncoderRows:
    """
    ``norm(x) W + b`` of a few features, from columns that are linear in x.

    A normalisation is of the whole activation, yet needs no more than the columns:
    rms divides by \\|x\\|, which the norm column gives. layer_norm's mean is one more
    column, and its variance is (\\|x\\|^2 - d mean^2) / (d - 1); the mean is taken off
    by centring the rows, since w (x - mean) = (w - mean(w)) x.

    Attributes:
        hook_points: One a source.

        weight: Rows side by side for the sources, (k, n_sources * d_model), float32.

        bias: Of shape (k,), float32.

        input_norm: As in `SAE`.

        norm_eps: As in `SAE`.
    """

    hook_points: tuple[str, ...]
    weight: Float32
    bias: Float32
    input_norm: str
    norm_eps: float

    @classmethod
    def of(cls, sae: SAE, features: Int64) -> Self:
        """The rows of *features* of *sae*, as the file has them."""
        return cls(
            hook_points=sae.hook_points,
            weight=np.ascontiguousarray(sae.W_enc[:, features].T),
            bias=sae.b_enc[features],
            input_norm=sae.input_norm,
            norm_eps=sae.norm_eps,
        )

    @property
    def d_model(self) -> int:
        return int(self.weight.shape[1]) // len(self.hook_points)

    def projections(self) -> tuple[Projection, ...]:
        """One a source; the bias is added later, behind the normalisation."""
        rows = self.weight.astype(np.float64)
        if self.input_norm == "layer_norm":
            rows = rows - rows.mean(axis=1, keepdims=True)
            rows = np.vstack([rows, np.full(self.d_model, 1 / self.d_model)])
        parts = np.split(rows.astype(np.float32), len(self.hook_points), axis=1)
        return tuple(
            Projection(
                hook_point=hook_point,
                weight=np.ascontiguousarray(part),
                bias=np.zeros(len(part), dtype=np.float32),
                wants_norm=self.input_norm != "none",
            )
            for hook_point, part in zip(self.hook_points, parts, strict=True)
        )

    def pre_activations(self, columns: Float32) -> Float32:
        """From the projections' columns to pre-activations, (n_tokens, k), float32."""
        k = len(self.weight)
        wide = columns.astype(np.float64)
        if self.input_norm == "none":
            products = wide.reshape(len(wide), len(self.hook_points), k).sum(axis=1)
        else:
            products = wide[:, :k] / self._spread(wide)[:, None]
        return clipped(products + self.bias)

    def _spread(self, columns: Float64) -> Float64:
        """What the normalisation divides by, (n_tokens,); 1 for a row without any."""
        d, squared = self.d_model, columns[:, -1]
        if self.input_norm == "rms":
            spread = np.sqrt(squared / d)
        else:
            variance = (squared - d * columns[:, -2] ** 2) / (d - 1)
            spread = np.sqrt(np.maximum(variance, 0)) + self.norm_eps
        found: Float64 = np.where(spread == 0, 1.0, spread)
        return found


def clipped(pre_activations: Float64) -> Float32:
    """As float32, the largest where they are beyond it."""
    return np.clip(pre_activations, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
