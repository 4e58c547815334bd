# Facts: He et al. 2410.20526; SAELens 6.54, pretrained_sae_loaders.py; what the
# authors' loader does differently is at `read_llama_scope`.
"""Llama Scope: hyperparams.json and checkpoints/final.safetensors."""

import math
from pathlib import Path

import numpy as np

from probes.fields import Fields
from probes.sae_formats.folding import row_norms, scaled, turned
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import read_json


def read_llama_scope(path: Path, given: Given) -> SAE:
    """
    Read a folder of Llama Scope.

    x is multiplied by ``s = sqrt(d_in) / dataset_average_activation_norm.in``, and so
    is the one threshold of all features; no bias is subtracted. Where the file says
    ``sparsity_include_decoder_norm``, the decoder's norms are folded into the
    encoder first, as its authors do and SAELens does not; published ones are 1.
    Features are SAELens' and not the authors', which are smaller by s.

    Raises:
        ArtifactError: As `load_sae`; the model has to be given.
    """
    config_path = path / "hyperparams.json"
    config = read_json(config_path)
    d_in, d_sae = (config.integer(key, minimum=1) for key in ("d_model", "d_sae"))
    if _is_true(config, "use_glu_encoder", default=False):
        config.fail("use_glu_encoder", "is refused: only 'false' is read")
    activation, threshold = _activation(config)
    scale = given.scaling(config_path, _scale(config, d_in))
    reads, writes = config.text("hook_point_in"), config.text("hook_point_out", "")
    is_transcoder = writes not in ("", reads)

    tensors = open_safetensors(path / "checkpoints" / "final.safetensors")
    W_enc = turned(tensors.floats("encoder.weight", (d_sae, d_in)))  # noqa: N806
    W_dec = turned(tensors.floats("decoder.weight", ("d_out", d_sae)))  # noqa: N806
    b_enc = tensors.floats("encoder.bias", (d_sae,))
    b_dec = np.zeros(W_dec.shape[1], np.float32)
    if _is_true(config, "use_decoder_bias", default=True):
        b_dec = tensors.floats("decoder.bias", b_dec.shape)
    tensors.close()
    if _is_true(config, "sparsity_include_decoder_norm", default=False):
        norms = row_norms(W_dec)
        if not norms.all():
            tensors.fail("decoder.weight", "expected columns that are not 0")
        W_enc, b_enc = scaled(W_enc, norms), scaled(b_enc, norms)  # noqa: N806
        W_dec = scaled(W_dec, 1 / norms[:, None])  # noqa: N806
    if not is_transcoder:
        W_dec, b_dec = scaled(W_dec, 1 / scale), scaled(b_dec, 1 / scale)  # noqa: N806
    thresholds = None
    if threshold is not None:
        thresholds = np.full(d_sae, threshold * scale, np.float32)
    return SAE(
        W_enc=scaled(W_enc, scale),
        b_enc=b_enc,
        activation=activation,
        threshold=thresholds,
        k=given.active(config_path, config.integer("top_k", minimum=1))
        if activation == "topk"
        else None,
        hook_points=given.places(config_path, (reads,)),
        model_name=given.model(config_path, None),
        W_dec=W_dec,
        b_dec=b_dec,
        is_transcoder=is_transcoder,
    )


def _activation(config: Fields) -> tuple[str, float | None]:
    """What it is, and its threshold: TopK with a threshold above 0 is JumpReLU."""
    name = config.text("act_fn").lower()
    if name not in ("relu", "jumprelu", "topk"):
        config.fail("act_fn", f"expected relu, jumprelu or topk, found {name!r}")
    threshold = config.number("jump_relu_threshold", 0.0)
    if name == "jumprelu" or (name == "topk" and threshold > 0):
        return "jumprelu", threshold
    return name, None


def _scale(config: Fields, d_in: int) -> float:
    norm_activation = config.text("norm_activation", "dataset-wise")
    if norm_activation == "inference":
        return 1.0
    if norm_activation != "dataset-wise":
        config.fail(
            "norm_activation",
            f"expected 'dataset-wise' or 'inference', found {norm_activation!r}",
        )
    norms = config.table("dataset_average_activation_norm")
    norm = norms.number("in")
    if norm <= 0:
        norms.fail("in", f"expected a number above 0, found {norm}")
    return math.sqrt(d_in) / norm


def _is_true(config: Fields, key: str, *, default: bool) -> bool:
    return config.truth(key) if config.has(key) else default
