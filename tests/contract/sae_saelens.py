"""Cases of SAELens: the folder of version 6, and the older flat configuration."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.contract.sae_checkpoints import (
    D_IN,
    D_SAE,
    HOOK,
    Array,
    Case,
    Formula,
    jump_relu,
    layer_norm,
    levels,
    pieces,
    relu,
    rescaled,
    save_json,
    save_tensors,
    top_k,
    weights,
)


def _saelens(cfg: dict[str, Any], *, is_flat: bool = False) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        architecture = cfg.get("architecture", "standard")
        t = pieces(cfg.get("d_out", D_IN))
        if "jumprelu" in architecture:
            t["threshold"] = levels(5)
        if architecture == "gated":
            del t["b_enc"]
            t |= {n: weights(D_SAE, seed=6 + i) for i, n in enumerate(_GATES)}
        if "skip" in architecture:
            t["W_skip"] = weights(cfg["d_out"], D_IN, seed=9)
        place = {"hook_name": HOOK, "model_name": "tiny"}
        whole = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", **cfg}
        whole |= place if is_flat else {"metadata": place, "architecture": architecture}
        save_json(folder / "cfg.json", whole)
        save_tensors(folder / "sae_weights.safetensors", t)
        return folder, lambda x: _saelens_formula(whole, t, x)

    return write


_GATES = ("b_gate", "r_mag", "b_mag")


def _saelens_formula(cfg: dict[str, Any], t: dict[str, Any], x: Array) -> Array:
    norm = cfg.get("normalize_activations", "none")
    if norm == "layer_norm":
        x = layer_norm(x, 1e-5)
    if norm == "constant_norm_rescale":
        x = rescaled(x)
    if norm == "expected_average_only_in":
        x = x * 2.5
    if cfg.get("apply_b_dec_to_input", "d_out" not in cfg):
        x = x - t["b_dec"]
    if cfg.get("architecture") == "gated":
        gate = x @ t["W_enc"] + t["b_gate"] > 0
        return gate * relu(x @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"])
    pre = x @ t["W_enc"] + t["b_enc"]
    if cfg.get("rescale_acts_by_decoder_norm"):
        pre = pre * np.linalg.norm(t["W_dec"], axis=1)
    k = cfg.get("k") or cfg.get("activation_fn_kwargs", {}).get("k")
    if k:
        return top_k(pre, k)
    return jump_relu(pre, t["threshold"]) if "threshold" in t else relu(pre)


def _case(write: Any, activation: str, **changes: Any) -> Case:
    return Case(format="saelens", write=write, activation=activation, **changes)


_OLD_TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}

SAELENS = {
    "standard": _case(_saelens({"apply_b_dec_to_input": True}), "relu"),
    "unshifted": _case(_saelens({"apply_b_dec_to_input": False}), "relu"),
    # BatchTopK and Matryoshka SAEs are saved like this.
    "jumprelu": _case(_saelens({"architecture": "jumprelu"}), "jumprelu"),
    "gated": _case(_saelens({"architecture": "gated"}), "gated"),
    "topk": _case(_saelens({"architecture": "topk", "k": 7}), "topk"),
    "topk-rescaled": _case(
        _saelens(
            {"architecture": "topk", "k": 7, "rescale_acts_by_decoder_norm": True}
        ),
        "topk",
    ),
    "flat-topk": _case(_saelens(_OLD_TOPK, is_flat=True), "topk"),
    "layer-norm": _case(
        _saelens(
            {"normalize_activations": "layer_norm", "architecture": "topk", "k": 7}
        ),
        "topk",
    ),
    "constant-norm": _case(
        _saelens({"normalize_activations": "constant_norm_rescale"}), "relu"
    ),
    "expected-average": _case(
        _saelens(
            {
                "normalize_activations": "expected_average_only_in",
                "architecture": "jumprelu",
            }
        ),
        "jumprelu",
        facts={"scale": 2.5},
    ),
    "transcoder": _case(_saelens({"architecture": "transcoder", "d_out": 12}), "relu"),
    "jumprelu-skip-transcoder": _case(
        _saelens({"architecture": "jumprelu_skip_transcoder", "d_out": 12}), "jumprelu"
    ),
}
