"""A model with the shape of an 8B Llama and no weights, and detectors for it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probes import (
    LinearProbe,
    Max,
    ModelIdentity,
    fixed_thresholds,
    new_bundle,
    save_bundle,
)

N_DETECTORS = 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama's sizes, and the blocks that are watched."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    n_vocabulary: int
    watched: tuple[int, int, int]

    @property
    def hook_points(self) -> list[str]:
        """Names of the hook points after the watched blocks."""
        return [f"blocks.{layer}.hook_resid_post" for layer in self.watched]


LLAMA_8B = Shape(
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    d_mlp=14336,
    n_vocabulary=128256,
    watched=(7, 15, 23),
)
TINY = Shape(
    d_model=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    d_mlp=256,
    n_vocabulary=512,
    watched=(0, 1, 2),
)

MEDIUM = Shape(
    d_model=1024,
    n_layers=12,
    n_heads=16,
    n_kv_heads=8,
    d_mlp=2816,
    n_vocabulary=8192,
    watched=(2, 5, 8),
)
"""158 M parameters: what a CPU still serves."""


def write_model(folder: Path, shape: Shape, dtype: str) -> None:
    """Write the configuration of a model, for ``load_format="dummy"``."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.d_model // shape.n_heads,
        "intermediate_size": shape.d_mlp,
        "vocab_size": shape.n_vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def write_detectors(folder: Path, model: Path, shape: Shape, dtype: str) -> None:
    """Write a bundle of `N_DETECTORS` random linear probes that never flag."""
    rng = np.random.default_rng(0)
    detectors = [
        LinearProbe(
            name=f"random-{index}",
            hook_point=shape.hook_points[index % len(shape.hook_points)],
            weight=rng.standard_normal(shape.d_model).astype(np.float32),
            bias=0.0,
            aggregator=Max(),
        )
        for index in range(N_DETECTORS)
    ]
    # Without weights there is nothing to digest: the plugin says so too.
    identity = ModelIdentity(
        model=str(model),
        config_sha256="",
        weights_sha256="",
        tokenizer_sha256="",
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        dtype=dtype,
    )
    save_bundle(
        folder,
        new_bundle(
            name="random",
            version="1",
            identity=identity,
            detectors=detectors,
            calibration=fixed_thresholds({d.name: 1e9 for d in detectors}),
        ),
    )
