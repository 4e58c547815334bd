# Facts: SAELens 6.54, sae_lens/saes/*.py and loading/pretrained_sae_loaders.py.
"""SAELens checkpoints: a folder with cfg.json and sae_weights.safetensors."""

from pathlib import Path

import numpy as np

from probes.arrays import Float32
from probes.errors import ArtifactError
from probes.fields import Fields
from probes.sae_formats.folding import row_norms, scaled, unshifted
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import Tensors, read_json

# BatchTopK and Matryoshka SAEs need no entry: SAELens saves them as jumprelu.
_ACTIVATIONS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_REFUSED = {
    "abstopk": "features of either sign are not ones that a rule can watch",
    "batchtopk": "a state of training; SAELens saves the finished SAE as jumprelu",
    "matryoshka_batchtopk": "a state of training; the finished one is jumprelu",
    "matching_pursuit": "features are chosen one after the other",
    "temporal": "needs the activations of earlier tokens",
}
_NORMS = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_norm_rescale": "rms",
    "layer_norm": "layer_norm",
}
_LAYER_NORM_EPS = 1e-5


def read_saelens(path: Path, given: Given) -> SAE:
    """
    Read a SAELens checkpoint, version 6 or the older flat configuration.

    ``pre = (norm(x) - c b_dec) W_enc + b_enc``, c being ``apply_b_dec_to_input``, and
    what `SAE` says of its kind. ``expected_average_only_in`` multiplies x by a scale
    that is not in the folder and has to be given; biases and threshold stay.

    Raises:
        ArtifactError: A file is missing or malformed, a shape does not fit, the SAE
            is of a kind that is not read, or a fact is missing or not as given.
    """
    cfg_path = path / "cfg.json"
    cfg = read_json(cfg_path)
    architecture = _check_kind(cfg)
    activation = _ACTIVATIONS[architecture]
    is_transcoder = architecture.endswith("transcoder")
    hook_point, model_name = _place(cfg)
    d_in, d_sae = cfg.integer("d_in", minimum=1), cfg.integer("d_sae", minimum=1)
    d_out = cfg.integer("d_out", minimum=1) if is_transcoder else d_in
    norm, is_scaled = _normalisation(cfg, is_transcoder)

    tensors = open_safetensors(path / "sae_weights.safetensors")
    W_enc = tensors.floats("W_enc", (d_in, d_sae))  # noqa: N806
    W_dec = tensors.floats("W_dec", (d_sae, d_out))  # noqa: N806
    b_dec = tensors.floats("b_dec", (d_out,))
    b_enc = np.zeros(d_sae, np.float32)
    if activation != "gated":
        b_enc = tensors.floats("b_enc", (d_sae,))
    extra = _extra(tensors, activation, d_sae)
    _check_scaling(tensors)
    tensors.close(["W_skip"] if "skip" in architecture else [])
    if _is_true(cfg, "apply_b_dec_to_input", default=not is_transcoder):
        if is_transcoder:
            cfg.fail("apply_b_dec_to_input", "expected false of a transcoder")
        b_enc = unshifted(b_enc, W_enc, b_dec)
    if activation == "topk" and _is_true(
        cfg, "rescale_acts_by_decoder_norm", default=False
    ):
        norms = row_norms(W_dec)
        if not norms.all():
            tensors.fail("W_dec", "expected rows that are not 0")
        W_enc, b_enc = scaled(W_enc, norms), scaled(b_enc, norms)  # noqa: N806
        W_dec = scaled(W_dec, 1 / norms[:, None])  # noqa: N806
    if is_scaled:
        scale = given.scaling(cfg_path, None)
        W_enc = scaled(W_enc, scale)  # noqa: N806
        W_dec, b_dec = scaled(W_dec, 1 / scale), scaled(b_dec, 1 / scale)  # noqa: N806
    return SAE(
        W_enc=W_enc,
        b_enc=b_enc,
        activation=activation,
        hook_points=given.places(cfg_path, (hook_point,)),
        model_name=given.model(cfg_path, model_name),
        k=given.active(cfg_path, _k(cfg)) if activation == "topk" else None,
        input_norm=norm,
        norm_eps=_LAYER_NORM_EPS if norm == "layer_norm" else 0.0,
        W_dec=W_dec,
        b_dec=b_dec,
        is_transcoder=is_transcoder,
        threshold=extra.get("threshold"),
        b_gate=extra.get("b_gate"),
        r_mag=extra.get("r_mag"),
        b_mag=extra.get("b_mag"),
    )


def _check_kind(cfg: Fields) -> str:
    """The architecture, if it is one that is read; else raise, saying why not."""
    architecture = cfg.text("architecture", "standard")
    if architecture not in _ACTIVATIONS:
        reason = _REFUSED.get(architecture, "unknown")
        cfg.fail("architecture", f"{architecture!r} is refused: {reason}")
    # Before 6.0 a TopK SAE was a standard one with another function.
    key = "activation_fn_str" if cfg.has("activation_fn_str") else "activation_fn"
    function = cfg.text(key, "relu")
    if architecture == "standard" and function == "topk":
        architecture = "topk"
    elif function not in ("relu", "topk" if architecture == "topk" else "relu"):
        reason = _REFUSED.get(function.replace("-", ""), "unknown")
        cfg.fail(key, f"{function!r} is refused: {reason}")
    if cfg.data.get("reshape_activations", "none") not in ("none", None):
        cfg.fail("reshape_activations", "only 'none' is read")
    if _is_true(cfg, "finetuning_scaling_factor", default=False):
        cfg.fail("finetuning_scaling_factor", "is refused: only 'false' is read")
    return architecture


def _normalisation(cfg: Fields, is_transcoder: bool) -> tuple[str, bool]:
    """What the record calls it, and whether a scale has to be given."""
    name = cfg.data.get("normalize_activations", "none")
    # Before 6.0 a truth value: true is what has been called expected_average_only_in.
    if isinstance(name, bool) or name is None:
        name = "expected_average_only_in" if name else "none"
    if not isinstance(name, str) or name not in _NORMS:
        cfg.fail("normalize_activations", f"{name!r} is refused: unknown")
    is_scaled = name == "expected_average_only_in"
    if is_scaled and is_transcoder:
        cfg.fail("normalize_activations", f"{name!r} is refused of a transcoder")
    return _NORMS[name], is_scaled


def _place(cfg: Fields) -> tuple[str, str | None]:
    """Hook point and model: in ``metadata`` since 6.0, at the top before."""
    place = cfg.table("metadata") if cfg.has("metadata") else cfg
    key = "hook_name" if place.has("hook_name") else "hook_point"
    hook_name = place.text(key)
    if place.data.get("hook_head_index") is not None:
        place.fail("hook_head_index", "is refused: one head's part is not read")
    model_name = place.data.get("model_name")
    return hook_name, model_name if isinstance(model_name, str) else None


def _k(cfg: Fields) -> int:
    if not cfg.has("k") and cfg.has("activation_fn_kwargs"):
        return cfg.table("activation_fn_kwargs").integer("k", minimum=1)
    return cfg.integer("k", minimum=1)


def _extra(tensors: Tensors, activation: str, d_sae: int) -> dict[str, Float32]:
    """The arrays that only this *activation* has."""
    names = {"jumprelu": ("threshold",), "gated": ("b_gate", "r_mag", "b_mag")}
    return {name: tensors.floats(name, (d_sae,)) for name in names.get(activation, ())}


def _check_scaling(tensors: Tensors) -> None:
    """An old checkpoint's per-feature scale must be 1, as SAELens demands it."""
    if "scaling_factor" in tensors:
        factor = tensors.floats("scaling_factor", ("n",))
        if not np.allclose(factor, 1):
            raise ArtifactError(
                f"{tensors.file}: scaling_factor: expected ones, found others"
            )


def _is_true(cfg: Fields, key: str, *, default: bool) -> bool:
    value = cfg.data.get(key, default)
    if not isinstance(value, bool):
        cfg.fail(key, f"expected true or false, found {value!r}")
    return value
