"""Cases of Gemma Scope, sparsify, Llama Scope and llamascopium."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.contract.sae_checkpoints import (
    D_IN,
    D_SAE,
    HOOK,
    OTHER,
    Array,
    Case,
    Formula,
    group_max,
    jump_relu,
    levels,
    pieces,
    relu,
    rescaled,
    save_json,
    save_tensors,
    top_k,
    weights,
)

_MLP = "blocks.3.hook_mlp_in"


def _gemma_scope(*, is_lower: bool = False, divisor: float = 1.0) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = pieces() | {"threshold": levels(5)}
        folder.mkdir()
        names = {name: name.lower() if is_lower else name for name in t}
        np.savez(folder / "params.npz", **{names[name]: t[name] for name in t})
        return folder, lambda x: jump_relu(
            x / divisor @ t["W_enc"] + t["b_enc"], t["threshold"]
        )

    return write


def _gemma_scope_2(config: dict[str, Any] | None, file: str = "") -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = pieces()
        stored = {name.lower(): t[name] for name in t} | {"threshold": levels(5)}
        if file:
            stored["w_dec"] = weights(D_SAE, 4, D_IN, seed=3)
        if config:
            save_json(folder / "config.json", {"architecture": "jump_relu", **config})
        if config and "hf_hook_point_out" in config:
            stored["affine_skip_connection"] = weights(D_IN, D_IN, seed=9)
        save_tensors(folder / (file or "params.safetensors"), stored)
        return folder / file, lambda x: jump_relu(
            x @ t["W_enc"] + t["b_enc"], stored["threshold"]
        )

    return write


_GIVEN = {"hook_point": HOOK, "model_name": "tiny"}
_NORM_IN = "model.layers.3.pre_feedforward_layernorm.output"
_NORM_OUT = "model.layers.3.post_feedforward_layernorm.output"

GEMMA = {
    "gemma-scope": Case(
        format="gemma_scope",
        write=_gemma_scope(),
        activation="jumprelu",
        facts=_GIVEN,
    ),
    "gemma-scope-transcoder": Case(
        format="gemma_scope",
        write=_gemma_scope(is_lower=True),
        activation="jumprelu",
        facts=_GIVEN | {"hook_point": _MLP},
        hook_points=(_MLP,),
    ),
    "gemma-scope-embedding": Case(
        format="gemma_scope",
        write=_gemma_scope(divisor=4.0),  # sqrt(d_in)
        activation="jumprelu",
        facts=_GIVEN | {"hook_point": "hook_embed"},
        hook_points=("hook_embed",),
    ),
    "gemma-scope-2": Case(
        format="gemma_scope_2",
        write=_gemma_scope_2(
            {"model_name": "tiny", "hf_hook_point_in": "model.layers.3.output"}
        ),
        activation="jumprelu",
    ),
    "gemma-scope-2-transcoder": Case(
        format="gemma_scope_2",
        write=_gemma_scope_2(
            {
                "model_name": "tiny",
                "hf_hook_point_in": _NORM_IN,
                "hf_hook_point_out": _NORM_OUT,
                "affine_connection": True,
            }
        ),
        activation="jumprelu",
        hook_points=(_NORM_IN,),
    ),
    "gemma-scope-2-clt": Case(
        format="gemma_scope_2",
        write=_gemma_scope_2(None, "layer_3.safetensors"),
        activation="jumprelu",
        facts=_GIVEN | {"hook_point": _MLP},
        hook_points=(_MLP,),
    ),
}


def _sparsify(cfg: dict[str, Any], *, is_old: bool = False) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t, folder = pieces(), folder / "layers.3"
        new = {
            "encoder.weight": t["W_enc"].T,
            "encoder.bias": t["b_enc"],
            "W_dec": t["W_dec"],
            "b_dec": t["b_dec"],
        }
        old = {name: t[name] for name in ("W_enc", "b_enc", "b_dec")}
        old["decoder.weight"] = t["W_dec"].T
        if cfg.get("skip_connection"):
            new["W_skip"] = weights(D_IN, D_IN, seed=9)
        usual = {"expansion_factor": 4, "k": 8, "num_latents": 0, "multi_topk": False}
        save_json(folder / "cfg.json", {"d_in": D_IN, **usual, **cfg})
        save_tensors(folder / "sae.safetensors", old if is_old else new)

        def formula(x: Array) -> Array:
            shifted = x if cfg.get("transcode") else x - t["b_dec"]
            pre = shifted @ t["W_enc"] + t["b_enc"]
            is_group = cfg.get("activation") == "groupmax"
            return group_max(pre, 8) if is_group else top_k(pre, 8)

        return folder, formula

    return write


def _sparsify_case(cfg: dict[str, Any], *, is_old: bool = False) -> Case:
    return Case(
        format="sparsify",
        write=_sparsify(cfg, is_old=is_old),
        activation=cfg.get("activation", "topk"),
        facts={"model_name": "tiny"},
    )


SPARSIFY = {
    "sparsify-topk": _sparsify_case({"transcode": False}),
    "sparsify-groupmax": _sparsify_case({"activation": "groupmax"}),
    "sparsify-transcoder": _sparsify_case(
        {"num_latents": D_SAE, "transcode": True, "skip_connection": True}
    ),
    "sparsify-old": _sparsify_case({}, is_old=True),
}


def _linear_names(t: dict[str, Any]) -> dict[str, Any]:
    return {
        "encoder.weight": t["W_enc"].T,
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T,
        "decoder.bias": t["b_dec"],
    }


def _llama_scope(folder: Path) -> tuple[Path, Formula]:
    t = pieces()
    hyperparameters = {
        "d_model": D_IN,
        "d_sae": D_SAE,
        "act_fn": "topk",  # with a threshold above 0: JumpReLU
        "jump_relu_threshold": 0.4,
        "top_k": 7,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "use_glu_encoder": False,
    }
    save_json(folder / "hyperparams.json", hyperparameters)
    save_tensors(folder / "checkpoints" / "final.safetensors", _linear_names(t))

    def formula(x: Array) -> Array:
        scale, norms = np.sqrt(D_IN) / 2.5, np.linalg.norm(t["W_dec"], axis=1)
        pre = (x * scale @ t["W_enc"] + t["b_enc"]) * norms
        return jump_relu(pre, 0.4 * scale)

    return folder, formula


def _llama_scope_r1(folder: Path) -> tuple[Path, Formula]:
    t, threshold = pieces(), levels(5)
    config = {
        "d_model": D_IN,
        "expansion_factor": 4,
        "act_fn": "jumprelu",
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": False,
    }
    save_json(folder / "config.json", config)
    stored = _linear_names(t) | {"log_jumprelu_threshold": np.log(threshold)}
    save_tensors(folder / "sae_weights.safetensors", stored)
    return folder, lambda x: jump_relu(
        x * 2.5 @ t["W_enc"] + t["b_enc"], np.exp(np.log(threshold))
    )


def _llamascopium(act_fn: str, mode: str) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = pieces()
        config = {
            "sae_type": "sae",
            "d_model": D_IN,
            "expansion_factor": 4.0,
            "act_fn": act_fn,
            "top_k": 7,
            "hook_point_in": HOOK,
            "hook_point_out": HOOK,
            "norm_activation": mode,
        }
        stored = {
            "W_E": t["W_enc"],
            "b_E": t["b_enc"],
            "W_D": t["W_dec"],
            "b_D": t["b_dec"],
            f"dataset_average_activation_norm.{HOOK}": np.float32(2.5),
        }
        logs = weights(D_SAE, seed=5)
        if act_fn == "jumprelu":
            stored["activation_function.log_jumprelu_threshold"] = logs
        save_json(folder / "config.json", config)
        save_json(folder / "lm_config.json", {"model_name": "tiny"})
        save_tensors(folder / "sae_weights.safetensors", stored)

        def formula(x: Array) -> Array:
            if mode == "dataset-wise":
                x = x * np.sqrt(D_IN) / 2.5
            if mode == "token-wise":
                x = rescaled(x)
            norms = np.linalg.norm(t["W_dec"], axis=1)
            pre = (x @ t["W_enc"] + t["b_enc"]) * norms
            if act_fn == "jumprelu":
                return jump_relu(pre, np.exp(logs)) / norms
            return (top_k(pre, 7) if act_fn == "topk" else relu(pre)) / norms

        return folder, formula

    return write


def _llamascopium_crosscoder(folder: Path) -> tuple[Path, Formula]:
    stored: dict[str, Any] = {
        "W_E": weights(2, D_IN, D_SAE, seed=1),
        "b_E": weights(2, D_SAE, seed=2),
        "W_D": weights(2, D_SAE, D_IN, seed=3),
        "b_D": weights(2, D_IN, seed=4),
        "activation_function.log_jumprelu_threshold": weights(D_SAE, seed=5),
        f"dataset_average_activation_norm.{HOOK}": np.float32(2.0),
        f"dataset_average_activation_norm.{OTHER}": np.float32(3.0),
    }
    config = {
        "sae_type": "crosscoder",
        "d_model": D_IN,
        "expansion_factor": 4.0,
        "act_fn": "jumprelu",
        "hook_points": [HOOK, OTHER],
        "norm_activation": "dataset-wise",
    }
    save_json(folder / "config.json", config)
    save_json(folder / "lm_config.json", {"model_name": "tiny"})
    save_tensors(folder / "sae_weights.safetensors", stored)

    def formula(x: Array) -> Array:
        """At each source its features; here, those of any source."""
        parts = [x[:, :D_IN] * 4 / 2, x[:, D_IN:] * 4 / 3]
        pre = sum(p @ stored["W_E"][s] + stored["b_E"][s] for s, p in enumerate(parts))
        norms = np.linalg.norm(stored["W_D"], axis=2)
        threshold = np.exp(stored["activation_function.log_jumprelu_threshold"])
        at_each = [jump_relu(pre * norm, threshold) / norm for norm in norms]
        return np.maximum(*at_each)

    return folder, formula


def _scopium(write: Any, activation: str, **changes: Any) -> Case:
    return Case(format="llamascopium", write=write, activation=activation, **changes)


OPEN_MOSS = {
    "llama-scope": Case(
        format="llama_scope",
        write=_llama_scope,
        activation="jumprelu",
        facts={"model_name": "tiny"},
    ),
    "llama-scope-r1": _scopium(
        _llama_scope_r1, "jumprelu", facts={"model_name": "tiny", "scale": 2.5}
    ),
    "llamascopium-jumprelu": _scopium(
        _llamascopium("jumprelu", "dataset-wise"), "jumprelu"
    ),
    "llamascopium-topk": _scopium(_llamascopium("topk", "inference"), "topk"),
    "llamascopium-relu": _scopium(_llamascopium("relu", "token-wise"), "relu"),
    "llamascopium-crosscoder": _scopium(
        _llamascopium_crosscoder, "jumprelu", hook_points=(HOOK, OTHER)
    ),
}

FOLDERS = GEMMA | SPARSIFY | OPEN_MOSS
