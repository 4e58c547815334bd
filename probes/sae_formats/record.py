# Every format comes down to one formula:
#
#     features = activation(norm(x) W_enc + b_enc)
#
# Readers fold the rest into W_enc and b_enc: the decoder's bias that some subtract,
# scalar scales of the input, decoder norms. What cannot be folded is a field here.
"""A sparse autoencoder, as every reader returns it."""

from dataclasses import dataclass

import numpy as np

from probes.arrays import FLOAT32_MAX, Float32, check_array
from probes.errors import ActivationShapeError
from probes.hooks import check_hook_point
from probes.sae_formats.activations import (
    activate,
    gate,
    keep_group_maxima,
    keep_largest,
    moments,
    normalise,
)

ACTIVATIONS = ("relu", "jumprelu", "gated", "topk", "groupmax")
INPUT_NORMS = ("none", "layer_norm", "rms")

# Which arrays and numbers an activation needs; it must have no others.
_NEEDS: dict[str, tuple[str, ...]] = {
    "relu": (),
    "jumprelu": ("threshold",),
    "gated": ("b_gate", "r_mag", "b_mag"),
    "topk": ("k",),
    "groupmax": ("k",),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAE:
    """
    A sparse autoencoder, crosscoder or transcoder: its encoder, and what it is for.

    With ``pre = norm(x) W_enc + b_enc`` of each feature, the features are

    - relu: ``max(pre, 0)``;
    - jumprelu: the same where ``pre > threshold``, else 0 (arXiv 2407.14435);
    - gated: ``max(exp(r_mag) pre + b_mag, 0)`` where ``pre + b_gate > 0``, else 0
      (arXiv 2404.16014): one encoder row serves both;
    - topk: ``max(pre, 0)`` of the k features whose ``pre`` (times *rank_weight*) is
      largest of all (arXiv 2406.04093), else 0;
    - groupmax: the features, in order, are k groups of d_sae / k; ``max(pre, 0)`` of
      the largest of each group, else 0 (EleutherAI sparsify).

    Attributes:
        W_enc: Encoder of shape (d_in, d_sae), float32. Of a crosscoder, the rows of
            its sources one under the other, in the order of *hook_points*.

        b_enc: Bias of shape (d_sae,), float32.

        activation: One of `ACTIVATIONS`.

        hook_points: Where it reads, one a source. In TransformerLens' names where
            it has one; `check_residual` says whether we can read there.

        model_name: The model it was trained on, as its file or the caller says;
            may be empty.

        threshold: For jumprelu, of shape (d_sae,), float32.

        b_gate: For gated, of shape (d_sae,), float32.

        r_mag: For gated, of shape (d_sae,), float32.

        b_mag: For gated, of shape (d_sae,), float32.

        k: For topk and groupmax, how many features are on at most.

        is_raw: For topk: a value among the k largest is kept as it is, also below
            0, as some libraries do. Then f_i <= max(pre_i, 0) still holds.

        rank_weight: For topk, of shape (d_sae,), float32, above 0: features compete
            by ``pre * rank_weight``. None is 1 for each.

        input_norm: ``"none"``; ``"layer_norm"``: (x - mean) / (std + norm_eps), std
            with d_in - 1; or ``"rms"``: x sqrt(d_in) / \\|x\\|. Of each token alone.

        norm_eps: Added to the standard deviation by layer_norm.

        W_dec: Decoder of shape (d_sae, d_out), float32, or None where it is not in
            the file; ``features W_dec + b_dec`` is norm(x), or a transcoder's output.

        b_dec: Of shape (d_out,), float32, or None.

        is_transcoder: Whether the decoder writes another place than it reads.
    """

    W_enc: Float32
    b_enc: Float32
    activation: str
    hook_points: tuple[str, ...]
    model_name: str
    threshold: Float32 | None = None
    b_gate: Float32 | None = None
    r_mag: Float32 | None = None
    b_mag: Float32 | None = None
    k: int | None = None
    is_raw: bool = False
    rank_weight: Float32 | None = None
    input_norm: str = "none"
    norm_eps: float = 0.0
    W_dec: Float32 | None = None
    b_dec: Float32 | None = None
    is_transcoder: bool = False

    def __post_init__(self) -> None:
        check_array("SAE: W_enc", self.W_enc, ("d_in", "d_sae"))
        if self.W_enc.size == 0:
            raise ValueError(f"SAE: W_enc: expected numbers, got {self.W_enc.shape}")
        check_array("SAE: b_enc", self.b_enc, (self.d_sae,))
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("input_norm", self.input_norm, INPUT_NORMS)
        self._check_sources()
        self._check_activation()
        self._check_decoder()

    @property
    def d_in(self) -> int:
        """Width of what it reads, all sources together."""
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        return int(self.W_enc.shape[1])

    @property
    def n_sources(self) -> int:
        return len(self.hook_points)

    @property
    def d_model(self) -> int:
        """Width of one source."""
        return self.d_in // self.n_sources

    @property
    def hook_point(self) -> str:
        """
        The one place that it reads.

        Raises:
            ValueError: It reads several.
        """
        if self.n_sources != 1:
            raise ValueError(
                f"SAE: hook_points: expected one, got {list(self.hook_points)}"
            )
        return self.hook_points[0]

    @property
    def is_exact_on_subset(self) -> bool:
        """
        Whether some features can be had from their own encoder rows alone.

        Not of topk, where every feature competes with all; of groupmax only where
        the rows of a feature's whole group are there (see `group_of`).
        """
        return self.activation != "topk"

    def group_of(self, feature: int) -> range:
        """The features that decide, with *feature*, whether it is on."""
        if self.activation == "topk":
            return range(self.d_sae)
        if self.activation != "groupmax" or self.k is None:
            return range(feature, feature + 1)
        size = self.d_sae // self.k
        start = feature // size * size
        return range(start, start + size)

    def pre_activations(self, activations: Float32) -> Float32:
        """
        ``norm(x) W_enc + b_enc`` of each token, of shape (n_tokens, d_sae).

        Raises:
            ActivationShapeError: *activations* is not (n_tokens, d_in) float32.
        """
        if activations.ndim != 2 or activations.shape[1] != self.d_in:
            raise ActivationShapeError(
                f"SAE expects (n_tokens, {self.d_in}), got {activations.shape}"
            )
        if activations.dtype != np.float32:
            raise ActivationShapeError(f"SAE expects float32, got {activations.dtype}")
        normed = normalise(activations, self.input_norm, self.norm_eps)
        if self.n_sources == 1:
            return normed @ self.W_enc + self.b_enc
        # Rounded source by source, as columns come: what is within a rounding of a
        # threshold then falls on the same side in both.
        rows = zip(
            np.split(normed, self.n_sources, axis=1),
            np.split(self.W_enc, self.n_sources),
            strict=True,
        )
        products = sum((x @ weight).astype(np.float64) for x, weight in rows)
        wide = np.clip(products + self.b_enc, -FLOAT32_MAX, FLOAT32_MAX)
        pre: Float32 = wide.astype(np.float32)
        return pre

    def encode(self, activations: Float32) -> Float32:
        """
        All features of each token: the plain twin of what detectors evaluate.

        Args:
            activations: Of shape (n_tokens, d_in), float32; of several sources, side
                by side in the order of *hook_points*.

        Returns:
            Features of shape (n_tokens, d_sae), float32. NaN in gives NaN out.

        Raises:
            ActivationShapeError: *activations* is not (n_tokens, d_in) float32.
        """
        pre = self.pre_activations(activations)
        if self.activation == "gated":
            assert self.b_gate is not None
            assert self.r_mag is not None
            assert self.b_mag is not None
            return gate(pre, self.b_gate, self.r_mag, self.b_mag)
        if self.activation == "topk":
            assert self.k is not None
            return keep_largest(pre, self.k, self.rank_weight, is_raw=self.is_raw)
        if self.activation == "groupmax":
            assert self.k is not None
            return keep_group_maxima(pre, self.k)
        return activate(pre, self.threshold)

    def reconstruct(self, activations: Float32) -> Float32:
        """
        ``features W_dec + b_dec`` with the normalisation undone, (n_tokens, d_in).

        Raises:
            ActivationShapeError: *activations* is not (n_tokens, d_in) float32.

            ValueError: The file has no decoder, or it writes another place.
        """
        if self.W_dec is None or self.is_transcoder:
            why = "it writes another place" if self.is_transcoder else "there is none"
            raise ValueError(f"SAE: W_dec: expected a decoder of the input, {why}")
        output = self.encode(activations) @ self.W_dec
        if self.b_dec is not None:
            output = output + self.b_dec
        shift, scale = moments(activations, self.input_norm, self.norm_eps)
        restored: Float32 = (output * scale + shift).astype(np.float32)
        return restored

    def _check_sources(self) -> None:
        points = self.hook_points
        if not points or not all(points) or len(set(points)) < len(points):
            raise ValueError(
                f"SAE: hook_points: expected different names, got {list(points)}"
            )
        if self.d_in % len(points):
            raise ValueError(
                f"SAE: W_enc: expected rows for each of {len(points)} sources, "
                f"got {self.W_enc.shape}"
            )
        if len(points) > 1 and self.input_norm != "none":
            raise ValueError(
                f"SAE: input_norm: expected 'none' of several sources, "
                f"got {self.input_norm!r}"
            )

    def _check_activation(self) -> None:
        needed = _NEEDS[self.activation]
        for name in ("threshold", "b_gate", "r_mag", "b_mag", "k"):
            if (getattr(self, name) is not None) != (name in needed):
                expected = "one" if name in needed else "none"
                raise ValueError(f"SAE: {name}: {self.activation} expects {expected}")
        for name in ("threshold", "b_gate", "r_mag", "b_mag"):
            if name in needed:
                check_array(f"SAE: {name}", getattr(self, name), (self.d_sae,))
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise ValueError(f"SAE: k: expected 1 to {self.d_sae}, got {self.k}")
        if self.activation == "groupmax" and self.k and self.d_sae % self.k:
            raise ValueError(
                f"SAE: k: expected a divisor of {self.d_sae}, got {self.k}"
            )
        if self.activation != "topk" and (self.is_raw or self.rank_weight is not None):
            raise ValueError("SAE: is_raw, rank_weight: only of topk")
        if self.rank_weight is not None:
            check_array("SAE: rank_weight", self.rank_weight, (self.d_sae,))
            if (self.rank_weight <= 0).any():
                raise ValueError("SAE: rank_weight: expected numbers above 0")

    def _check_decoder(self) -> None:
        if self.W_dec is None:
            if self.b_dec is not None:
                raise ValueError("SAE: b_dec: expected none without W_dec")
            return
        check_array("SAE: W_dec", self.W_dec, (self.d_sae, "d_out"))
        d_out = int(self.W_dec.shape[1])
        if not self.is_transcoder and d_out != self.d_in:
            raise ValueError(
                f"SAE: W_dec: expected ({self.d_sae}, {self.d_in}), "
                f"got {self.W_dec.shape}"
            )
        if self.b_dec is not None:
            check_array("SAE: b_dec", self.b_dec, (d_out,))


def check_residual(sae: SAE) -> None:
    """Raise `ValueError` unless each source is the residual stream after a block."""
    for hook_point in sae.hook_points:
        try:
            check_hook_point(hook_point)
        except ValueError as error:
            raise ValueError(
                f"SAE: reads {hook_point}, and activations are read only where the "
                f"residual stream leaves a block: {error}"
            ) from error


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"SAE: {name}: expected one of {choices}, got {value!r}")
