# Facts: llamascopium 2.0.0b34 (lm-saes), models/sparse_dictionary.py, models/sae.py,
# models/crosscoder.py. Its encode() does not normalise the input: its caller does.
"""llamascopium (lm-saes) and Llama Scope R1: one folder, of two namings."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.arrays import Float32
from probes.fields import Fields
from probes.sae_formats.folding import row_norms, scaled, turned
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import Tensors, read_json

_NORM_OF = "dataset_average_activation_norm"
_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
_REFUSED = {
    "batchtopk": "which features are on depends on the other tokens of a batch",
    "layertopk": "only of cross-layer transcoders",
    "batchlayertopk": "only of cross-layer transcoders",
}


@dataclass(slots=True, kw_only=True)
class _Weights:
    """W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_out), b_dec."""

    W_enc: Float32
    b_enc: Float32
    W_dec: Float32 | None
    b_dec: Float32 | None


def read_llamascopium(path: Path, given: Given) -> SAE:
    """
    Read a folder of llamascopium or of Llama Scope R1: an SAE or a crosscoder.

    ``pre = x W + b``, x at an average length of sqrt(d) (``norm_activation``), and no
    bias subtracted. With ``sparsity_include_decoder_norm`` (the default) ``pre`` times
    the norm of a feature's decoder row is what is held against the threshold, or
    competes; the feature itself is ``pre``. A crosscoder decides that at each source
    by that source's norm: here a feature is on where it is on at any source.

    Raises:
        ArtifactError: As `load_sae`; the model has to be given where lm_config.json
            does not name it, and the scale where it is in no tensor.
    """
    config_path = path / "config.json"
    config = read_json(config_path)
    kind = config.text("sae_type", "sae")
    if kind not in ("sae", "crosscoder"):
        config.fail("sae_type", f"expected 'sae' or 'crosscoder', found {kind!r}")
    if _is_true(config, "use_glu_encoder", default=False):
        config.fail("use_glu_encoder", "is refused: only 'false' is read")
    d_model = config.integer("d_model", minimum=1)
    d_sae = int(d_model * config.number("expansion_factor"))
    reads, is_transcoder = _places(config, kind)
    tensors = open_safetensors(path / "sae_weights.safetensors")
    weights, norms = _weights(config, tensors, kind, (len(reads), d_model, d_sae))
    input_norm = _normalise(config, tensors, given, reads, weights, is_transcoder)
    activation = _activation(config)
    threshold = rank_weight = k = None
    if activation == "jumprelu":
        threshold = _threshold(tensors, d_sae, norms)
    if activation == "topk":
        if kind == "crosscoder":
            config.fail("act_fn", "'topk' is refused of a crosscoder: one at a source")
        k = given.active(config_path, config.integer("top_k", 50, minimum=1))
        rank_weight = norms[0].astype(np.float32)
    tensors.close([f"{_NORM_OF}.*", *_THRESHOLDS])
    return SAE(
        W_enc=weights.W_enc,
        b_enc=weights.b_enc,
        activation=activation,
        threshold=threshold,
        k=k,
        rank_weight=rank_weight,
        input_norm=input_norm,
        hook_points=given.places(config_path, reads),
        model_name=given.model(config_path, _model(path)),
        W_dec=weights.W_dec,
        b_dec=weights.b_dec,
        is_transcoder=is_transcoder,
    )


def _places(config: Fields, kind: str) -> tuple[tuple[str, ...], bool]:
    """Where it reads, and whether it writes another place."""
    if kind == "crosscoder":
        return tuple(config.texts("hook_points")), False
    reads = config.text("hook_point_in")
    return (reads,), config.text("hook_point_out", reads) != reads


def _weights(
    config: Fields, tensors: Tensors, kind: str, sizes: tuple[int, int, int]
) -> tuple[_Weights, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """The weights, and what each feature is weighed by at each source."""
    n, d_model, d_sae = sizes
    has_bias = _is_true(config, "use_decoder_bias", default=True)
    if kind == "crosscoder":
        W_dec = tensors.floats("W_D", (n, d_sae, d_model))  # noqa: N806
        tensors.floats("b_D", (n, d_model))
        norms = np.stack([row_norms(rows) for rows in W_dec])
        W_enc = tensors.floats("W_E", (n, d_model, d_sae))  # noqa: N806
        b_enc = tensors.floats("b_E", (n, d_sae)).sum(axis=0, dtype=np.float64)
        weights = _Weights(
            W_enc=W_enc.reshape(n * d_model, d_sae),
            b_enc=b_enc.astype(np.float32),
            W_dec=None,  # writes a feature only where it is on at that source
            b_dec=None,
        )
    elif "encoder.weight" in tensors:
        weights = _Weights(
            W_enc=turned(tensors.floats("encoder.weight", (d_sae, d_model))),
            b_enc=tensors.floats("encoder.bias", (d_sae,)),
            W_dec=turned(tensors.floats("decoder.weight", (d_model, d_sae))),
            b_dec=tensors.floats("decoder.bias", (d_model,)) if has_bias else None,
        )
    else:
        weights = _Weights(
            W_enc=tensors.floats("W_E", (d_model, d_sae)),
            b_enc=tensors.floats("b_E", (d_sae,)),
            W_dec=tensors.floats("W_D", (d_sae, d_model)),
            b_dec=tensors.floats("b_D", (d_model,)) if has_bias else None,
        )
    if weights.W_dec is not None:
        norms = row_norms(weights.W_dec)[None]
    if not _is_true(config, "sparsity_include_decoder_norm", default=True):
        norms = np.ones_like(norms)
    if not norms.all():
        tensors.fail("W_D", "expected decoder rows that are not 0")
    return weights, norms


def _normalise(
    config: Fields,
    tensors: Tensors,
    given: Given,
    reads: tuple[str, ...],
    weights: _Weights,
    is_transcoder: bool,
) -> str:
    """Fold each source's scale into *weights*; what is left to do with the input."""
    mode = config.text("norm_activation", "dataset-wise")
    if mode == "inference":
        return "none"
    if mode == "token-wise":
        return "rms"
    if mode != "dataset-wise":
        config.fail(
            "norm_activation",
            f"{mode!r} is refused: the input's scale depends on the other tokens",
        )
    d_model = len(weights.W_enc) // len(reads)
    for source, hook_point in enumerate(reads):
        name, found = f"{_NORM_OF}.{hook_point}", None
        if name in tensors:
            norm = float(tensors.floats(name, ()))
            if norm <= 0:
                tensors.fail(name, f"expected a number above 0, found {norm}")
            found = math.sqrt(d_model) / norm
        scale = given.scaling(tensors.file, found)
        rows = slice(source * d_model, (source + 1) * d_model)
        weights.W_enc[rows] = scaled(weights.W_enc[rows], scale)
        if weights.W_dec is not None and not is_transcoder:
            weights.W_dec = scaled(weights.W_dec, 1 / scale)
            if weights.b_dec is not None:
                weights.b_dec = scaled(weights.b_dec, 1 / scale)
    return "none"


def _activation(config: Fields) -> str:
    name = config.text("act_fn", "relu").lower()
    if name not in ("relu", "jumprelu", "topk"):
        reason = _REFUSED.get(name, "unknown")
        config.fail("act_fn", f"{name!r} is refused: {reason}")
    return name


def _threshold(
    tensors: Tensors,
    d_sae: int,
    norms: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> Float32:
    """Of ``pre``: exp of what is stored, over the largest norm of any source."""
    stored = [name for name in _THRESHOLDS if name in tensors] or [_THRESHOLDS[0]]
    logs = tensors.floats(stored[0], (d_sae,)).astype(np.float64)
    with np.errstate(over="ignore"):  # an infinity is refused by the record
        threshold: Float32 = (np.exp(logs) / norms.max(axis=0)).astype(np.float32)
    return threshold


def _model(path: Path) -> str | None:
    """The model that lm_config.json names, where there is one."""
    lm_config = path / "lm_config.json"
    return read_json(lm_config).text("model_name") if lm_config.is_file() else None


def _is_true(config: Fields, key: str, *, default: bool) -> bool:
    return config.truth(key) if config.has(key) else default
