"""SAELens checkpoints: a folder with cfg.json and sae_weights.safetensors."""

from pathlib import Path

import numpy as np

from probes.arrays import Float32
from probes.errors import ArtifactError
from probes.fields import Fields, json_fields
from probes.hooks import canonical_hook_point
from probes.sae_formats.record import SAE
from probes.sae_formats.tensors import read_tensors

# BatchTopK and Matryoshka SAEs need no entry: SAELens saves them as jumprelu.
_REFUSED = {
    "topk": "a feature is on only if it is among the k largest of all features, so "
    "watching a few of them would fire far too often",
    "gated": "not supported yet",
    "temporal": "needs the activations of earlier tokens",
    "matching_pursuit": "features are chosen one after the other",
    "transcoder": "reads the MLP's input, not the residual stream after a block",
    "jumprelu_transcoder": "reads the MLP's input, not the residual stream",
    "skip_transcoder": "reads the MLP's input, not the residual stream",
    "jumprelu_skip_transcoder": "reads the MLP's input, not the residual stream",
}


def load_saelens(path: Path) -> SAE:
    """
    Read a SAELens checkpoint, version 6 or the older flat configuration.

    Standard: relu((x - c b_dec) W_enc + b_enc), c being ``apply_b_dec_to_input``;
    jumprelu: the same where the pre-activation is above the threshold. c b_dec is
    folded: b_enc - W_enc^T b_dec (SAELens 6.54, sae_lens/saes/sae.py).

    Raises:
        ArtifactError: A file is missing or malformed, a shape does not fit, or the
            SAE is of a kind that is not read exactly from a few features; the
            message names the kind and the reason.
    """
    cfg_path = path / "cfg.json"
    if not cfg_path.is_file():
        raise ArtifactError(f"{cfg_path}: expected a file, found none")
    cfg = json_fields(str(cfg_path), cfg_path.read_bytes())
    architecture = _check_kind(cfg)
    hook_point, model_name = _place(cfg)
    d_in, d_sae = cfg.integer("d_in", minimum=1), cfg.integer("d_sae", minimum=1)

    weights_path = path / "sae_weights.safetensors"
    tensors = read_tensors(weights_path)
    W_enc = _tensor(weights_path, tensors, "W_enc", (d_in, d_sae))  # noqa: N806
    b_enc = _tensor(weights_path, tensors, "b_enc", (d_sae,))
    threshold = None
    if architecture == "jumprelu":
        threshold = _tensor(weights_path, tensors, "threshold", (d_sae,))
    _check_scaling(weights_path, tensors)
    if _is_true(cfg, "apply_b_dec_to_input", default=True):
        b_dec = _tensor(weights_path, tensors, "b_dec", (d_in,))
        shift = b_dec.astype(np.float64) @ W_enc
        b_enc = (b_enc - shift).astype(np.float32)
    return SAE(
        W_enc=W_enc,
        b_enc=b_enc,
        activation=architecture.replace("standard", "relu"),
        threshold=threshold,
        hook_points=(hook_point,),
        model_name=model_name,
    )


def _check_kind(cfg: Fields) -> str:
    """The architecture, if it can be read exactly; else raise, saying why not."""
    architecture = cfg.text("architecture", "standard")
    if architecture not in ("standard", "jumprelu"):
        reason = _REFUSED.get(architecture, "unknown")
        cfg.fail("architecture", f"{architecture!r} is refused: {reason}")
    activation = _old_activation(cfg)
    if architecture == "standard" and activation != "relu":
        reason = _REFUSED.get(activation.replace("-", ""), "unknown")
        cfg.fail("activation_fn_str", f"{activation!r} is refused: {reason}")
    normalisation = cfg.data.get("normalize_activations", "none")
    # Before 6.0 a truth value: false is "none".
    if normalisation not in ("none", None, False):
        cfg.fail(
            "normalize_activations",
            f"{normalisation!r} is refused: the scale is not in the folder",
        )
    if cfg.data.get("reshape_activations", "none") not in ("none", None):
        cfg.fail("reshape_activations", "only 'none' is read")
    if _is_true(cfg, "finetuning_scaling_factor", default=False):
        cfg.fail("finetuning_scaling_factor", "is refused: only 'false' is read")
    return architecture


def _old_activation(cfg: Fields) -> str:
    key = "activation_fn_str" if cfg.has("activation_fn_str") else "activation_fn"
    return cfg.text(key, "relu")


def _place(cfg: Fields) -> tuple[str, str]:
    """Hook point and model: in ``metadata`` since 6.0, at the top before."""
    place = cfg.table("metadata") if cfg.has("metadata") else cfg
    key = "hook_name" if place.has("hook_name") else "hook_point"
    hook_name = place.text(key)
    try:
        hook_point = canonical_hook_point(hook_name)
    except ValueError as error:
        place.fail(key, str(error))
    model_name = place.data.get("model_name")
    return hook_point, model_name if isinstance(model_name, str) else ""


def _check_scaling(path: Path, tensors: dict[str, Float32]) -> None:
    """An old checkpoint's per-feature scale must be 1, as SAELens demands it."""
    factor = tensors.get("scaling_factor")
    if factor is not None and not np.allclose(factor, 1):
        raise ArtifactError(f"{path}: scaling_factor: expected ones, found others")


def _tensor(
    path: Path, tensors: dict[str, Float32], name: str, shape: tuple[int, ...]
) -> Float32:
    if name not in tensors:
        raise ArtifactError(f"{path}: {name}: expected {shape}, found no such tensor")
    tensor = tensors[name]
    if tensor.shape != shape:
        raise ArtifactError(f"{path}: {name}: expected {shape}, found {tensor.shape}")
    if not np.isfinite(tensor).all():
        raise ArtifactError(f"{path}: {name}: expected finite numbers, found others")
    return tensor


def _is_true(cfg: Fields, key: str, *, default: bool) -> bool:
    value = cfg.data.get(key, default)
    if not isinstance(value, bool):
        cfg.fail(key, f"expected true or false, found {value!r}")
    return value
