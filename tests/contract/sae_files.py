"""Cases of dictionary_learning, and of formats that are one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.sae_checkpoints import (
    D_IN,
    D_SAE,
    HOOK,
    OTHER,
    Array,
    Case,
    Formula,
    jump_relu,
    layer_norm,
    levels,
    pieces,
    relu,
    save_json,
    save_tensors,
    top_k,
    weights,
)

_GIVEN = {"hook_point": HOOK, "model_name": "tiny"}


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """As torch.save writes it, arrays as tensors."""
    torch = pytest.importorskip("torch", reason="pip install torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: torch.tensor(np.array(value))
        if isinstance(value, np.ndarray | np.generic)
        else value
        for name, value in content.items()
    }
    torch.save(state, path)


def linear_names(t: dict[str, Any]) -> dict[str, Any]:
    """The pieces as two layers of torch hold them."""
    return {
        "encoder.weight": t["W_enc"].T,
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T,
    }


def _stored(dict_class: str, t: dict[str, Any]) -> dict[str, Any]:
    """The state of a class of dictionary_learning."""
    linear = linear_names(t)
    batch = {"k": np.int32(7), "threshold": np.float32(0.75)}
    match dict_class:
        case "AutoEncoder":
            return linear | {"bias": t["b_dec"]}
        case "AutoEncoderNew":
            return linear | {"decoder.bias": t["b_dec"]}
        case "GatedAutoEncoder":
            del linear["encoder.bias"]
            gates = {"r_mag": t["r_mag"], "gate_bias": t["b_gate"]}
            gates |= {"mag_bias": t["b_mag"], "decoder_bias": t["b_dec"]}
            return linear | gates
        case "JumpReluAutoEncoder":
            return {n: t[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
        case "MatryoshkaBatchTopKSAE":
            sizes = {"group_sizes": np.array([16, 48])}
            return {n: t[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")} | (
                batch | sizes
            )
        case _:
            return linear | {"b_dec": t["b_dec"]} | batch


def _dictionary_formula(dict_class: str, t: dict[str, Any], x: Array) -> Array:
    shifted = x - t["b_dec"]
    match dict_class:
        case "AutoEncoder":  # from_pretrained normalises the decoder
            norms = np.linalg.norm(t["W_dec"], axis=1)
            return relu(shifted @ (t["W_enc"] * norms) + t["b_enc"] * norms)
        case "AutoEncoderNew":
            return relu(x @ t["W_enc"] + t["b_enc"])
        case "GatedAutoEncoder":
            pre = shifted @ t["W_enc"]
            return (pre + t["b_gate"] > 0) * relu(np.exp(t["r_mag"]) * pre + t["b_mag"])
        case "JumpReluAutoEncoder":
            return jump_relu(x @ t["W_enc"] + t["b_enc"], t["threshold"])
        case "AutoEncoderTopK":
            return top_k(shifted @ t["W_enc"] + t["b_enc"], 7)
        case _:
            features = relu(shifted @ t["W_enc"] + t["b_enc"])
            return features * (features > 0.75)


def _dictionary(dict_class: str) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = pieces() | {"threshold": levels(5), "b_gate": weights(D_SAE, seed=6)}
        t |= {"r_mag": weights(D_SAE, seed=7), "b_mag": weights(D_SAE, seed=8)}
        trainer = {
            "dict_class": dict_class,
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "layer": 3,
            "lm_name": "tiny",
            "submodule_name": "resid_post_layer_3",
            "norm_factor": 12.5,
        }
        if "TopK" in dict_class:
            trainer["k"] = 7
        save_json(
            folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 8}}
        )
        save_torch(folder / "ae.pt", _stored(dict_class, t))
        return folder, lambda x: _dictionary_formula(dict_class, t, x)

    return write


_CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}

DICTIONARY_LEARNING = {
    name: Case(
        format="dictionary_learning", write=_dictionary(name), activation=activation
    )
    for name, activation in _CLASSES.items()
}


def _qwen_scope(folder: Path) -> tuple[Path, Formula]:
    t = pieces()
    save_torch(
        folder / "layer3.sae.pt",
        t | {"W_enc": t["W_enc"].T, "W_dec": t["W_dec"].T, "b_enc": t["b_enc"] - 1},
    )
    return folder / "layer3.sae.pt", lambda x: top_k(
        x @ t["W_enc"] + t["b_enc"] - 1, 30, is_raw=True
    )


def _openai(activation: str) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = pieces()
        linear = linear_names(t)
        del linear["encoder.bias"]
        state = linear | {
            "pre_bias": t["b_dec"],
            "latent_bias": t["b_enc"],
            "stats_last_nonzero": np.zeros(D_SAE, np.int64),
            "activation": activation,
        }
        if activation == "TopK":
            state["activation_state_dict"] = {"k": 7, "postact_fn": "ReLU"}
        save_torch(folder / "sae.pt", state)

        def formula(x: Array) -> Array:
            normed = layer_norm(x, 1e-5) if activation == "TopK" else x
            pre = (normed - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
            return top_k(pre, 7) if activation == "TopK" else relu(pre)

        return folder / "sae.pt", formula

    return write


def _two_layers(encoder: str, decoder: str, file: str) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = pieces()
        state = {
            f"{encoder}.weight": t["W_enc"].T,
            f"{encoder}.bias": t["b_enc"],
            f"{decoder}.weight": t["W_dec"].T,
            f"{decoder}.bias": t["b_dec"],
        }
        save_torch(folder / file, state)
        return folder / file, lambda x: relu(x @ t["W_enc"] + t["b_enc"])

    return write


_CONFIG = """model_name: "tiny"
feature_input_hook: hook_mlp_in  # before the norm
feature_output_hook: hook_mlp_out
transcoders:
- layer_3.safetensors
"""


def _circuit_tracer(*, is_jump: bool) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t, threshold = pieces(), levels(5)
        stored = t | {"W_enc": t["W_enc"].T, "W_skip": weights(D_IN, D_IN, seed=9)}
        if is_jump:
            stored["activation_function.threshold"] = threshold
        save_tensors(folder / "layer_3.safetensors", stored)
        (folder / "config.yaml").write_text(_CONFIG)

        def formula(x: Array) -> Array:
            pre = x @ t["W_enc"] + t["b_enc"]
            return jump_relu(pre, threshold) if is_jump else relu(pre)

        return folder / "layer_3.safetensors", formula

    return write


def _cross_layer(folder: Path) -> tuple[Path, Formula]:
    t = pieces()
    stored = {"W_enc_3": t["W_enc"].T, "b_enc_3": t["b_enc"], "b_dec_3": t["b_dec"]}
    save_tensors(folder / "W_enc_3.safetensors", stored)
    (folder / "config.yaml").write_text(_CONFIG)
    return folder / "W_enc_3.safetensors", lambda x: relu(x @ t["W_enc"] + t["b_enc"])


def _crosscoder(file: str, k: int | None) -> Any:
    def write(folder: Path) -> tuple[Path, Formula]:
        t = {
            "W_enc": weights(2, D_IN, D_SAE, seed=1),
            "b_enc": weights(D_SAE, seed=2),
            "W_dec": weights(D_SAE, 2, D_IN, seed=3),
            "b_dec": weights(2, D_IN, seed=4),
        }
        (save_torch if file.endswith(".pt") else save_tensors)(folder / file, t)

        def formula(x: Array) -> Array:
            pre = x[:, :D_IN] @ t["W_enc"][0] + x[:, D_IN:] @ t["W_enc"][1] + t["b_enc"]
            return relu(pre) if k is None else top_k(pre, k)

        return folder / file, formula

    return write


_MLP = "blocks.3.hook_mlp_in"
_SOURCES = {"hook_points": (HOOK, OTHER), "model_name": "tiny"}

ONE_FILE = {
    "qwen-scope": Case(
        format="qwen_scope",
        write=_qwen_scope,
        activation="topk",
        facts={"model_name": "tiny", "k": 30},
    ),
    "openai-topk": Case(
        format="openai", write=_openai("TopK"), activation="topk", facts=_GIVEN
    ),
    "openai-relu": Case(
        format="openai", write=_openai("ReLU"), activation="relu", facts=_GIVEN
    ),
    "goodfire": Case(
        format="goodfire",
        write=_two_layers("encoder_linear", "decoder_linear", "sae-l3.pth"),
        activation="relu",
        facts=_GIVEN,
    ),
    "deepseek-r1": Case(
        format="deepseek_r1",
        write=_two_layers("encoder", "decoder", "sae-l3.pt"),
        activation="relu",
        facts=_GIVEN,
    ),
    "circuit-tracer": Case(
        format="circuit_tracer",
        write=_circuit_tracer(is_jump=False),
        activation="relu",
        hook_points=(_MLP,),
    ),
    "circuit-tracer-jumprelu": Case(
        format="circuit_tracer",
        write=_circuit_tracer(is_jump=True),
        activation="jumprelu",
        hook_points=(_MLP,),
    ),
    "cross-layer": Case(
        format="cross_layer", write=_cross_layer, activation="relu", hook_points=(_MLP,)
    ),
    "crosscoder": Case(
        format="crosscoder",
        write=_crosscoder("cc.pt", None),
        activation="relu",
        facts=_SOURCES,
        hook_points=(HOOK, OTHER),
    ),
    "crosscoder-topk": Case(
        format="crosscoder",
        write=_crosscoder("cc.safetensors", 7),
        activation="topk",
        facts=_SOURCES | {"k": 7},
        hook_points=(HOOK, OTHER),
    ),
}

FILES = DICTIONARY_LEARNING | ONE_FILE
