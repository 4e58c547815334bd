"""A sparse autoencoder's encoder, as every reader returns it."""

from dataclasses import dataclass

import numpy as np

from probes.arrays import Float32, check_array
from probes.errors import ActivationShapeError
from probes.hooks import check_hook_point


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAE:
    """
    An encoder with everything that shifts its input folded into the bias.

    Attributes:
        W_enc: Encoder of shape (d_in, d_sae), float32, as SAELens saves it.

        b_enc: Bias of shape (d_sae,), float32. Where the SAE subtracts its
            decoder's bias from the input, that is already in here.

        threshold: JumpReLU thresholds of shape (d_sae,), or None for a ReLU.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        model_name: The model it was trained on, as its file says; may be empty.
    """

    W_enc: Float32
    b_enc: Float32
    threshold: Float32 | None
    hook_point: str
    model_name: str

    def __post_init__(self) -> None:
        check_hook_point(self.hook_point)
        check_array("SAE: W_enc", self.W_enc, ("d_in", "d_sae"))
        check_array("SAE: b_enc", self.b_enc, (self.d_sae,))
        if self.threshold is not None:
            check_array("SAE: threshold", self.threshold, (self.d_sae,))

    @property
    def d_in(self) -> int:
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        return int(self.W_enc.shape[1])

    def encode(self, activations: Float32) -> Float32:
        """
        All features of each token: the plain twin of `SAEFeatureDetector`.

        Standard: relu(x W_enc + b_enc). JumpReLU (Rajamanoharan et al. 2024,
        arXiv 2407.14435): the same where the pre-activation is above the
        threshold, 0 elsewhere.

        Args:
            activations: Of shape (n_tokens, d_in), float32.

        Returns:
            Feature activations of shape (n_tokens, d_sae), float32.

        Raises:
            ActivationShapeError: *activations* is not (n_tokens, d_in) float32.
        """
        if activations.ndim != 2 or activations.shape[1] != self.d_in:
            raise ActivationShapeError(
                f"SAE expects (n_tokens, {self.d_in}), got {activations.shape}"
            )
        pre = activations @ self.W_enc + self.b_enc
        return activate(pre, self.threshold)


def activate(pre_activations: Float32, threshold: Float32 | None) -> Float32:
    """
    ReLU, or JumpReLU where there is a *threshold* of shape (n_features,).

    A NaN stays a NaN: it must not look like a feature that is off.
    """
    rectified = np.maximum(pre_activations, 0)
    if threshold is None:
        return rectified
    return np.where(pre_activations <= threshold, np.float32(0), rectified)
