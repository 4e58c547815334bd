"""Checkpoints as each library writes them, with its formula written out plainly."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

D_IN, D_SAE = 16, 64
HOOK = "blocks.3.hook_resid_post"
OTHER = "blocks.5.hook_resid_post"

Array = Any  # float64; arithmetic on it is not what is tested
Formula = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """
    One kind of checkpoint.

    Attributes:
        format: What it has to be taken for.

        write: Writes it into a new folder; returns what to load, and the formula.

        facts: What has to be given.

        hook_points: Where it reads.

        model_name: Of which model.

        activation: Of the record.
    """

    format: str
    write: Callable[[Path], tuple[Path, Formula]]
    activation: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    hook_points: tuple[str, ...] = (HOOK,)
    model_name: str = "tiny"


def weights(*shape: int, seed: int) -> NDArray[np.float32]:
    """Normal numbers of half the usual size, so that features differ in sign."""
    numbers = np.random.default_rng(seed).normal(size=shape, scale=0.5)
    return numbers.astype(np.float32)


def levels(seed: int) -> NDArray[np.float32]:
    """Thresholds above 0."""
    return np.abs(weights(D_SAE, seed=seed)) + np.float32(0.1)


def pieces(d_out: int = D_IN) -> dict[str, Any]:
    """An encoder and a decoder, features last and first."""
    return {
        "W_enc": weights(D_IN, D_SAE, seed=1),
        "b_enc": weights(D_SAE, seed=2),
        "W_dec": weights(D_SAE, d_out, seed=3),
        "b_dec": weights(d_out, seed=4),
    }


def save_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    safetensors.numpy.save_file(whole, os.fspath(path))


def relu(pre: Array) -> Array:
    return np.maximum(pre, 0)


def jump_relu(pre: Array, threshold: Any) -> Array:
    return np.where(pre > threshold, relu(pre), 0)


def top_k(pre: Array, k: int, *, weigh: Any = 1.0, is_raw: bool = False) -> Array:
    """Row by row: the k whose weighed value is largest, then ReLU unless raw."""
    features = np.zeros_like(pre)
    for row, (values, ranks) in enumerate(zip(pre, pre * weigh, strict=True)):
        kept = sorted(range(len(values)), key=lambda i: -ranks[i])[:k]
        features[row, kept] = values[kept] if is_raw else relu(values[kept])
    return features


def group_max(pre: Array, k: int) -> Array:
    """Row by row and group by group: the largest of each of k groups."""
    features, size = np.zeros_like(pre), pre.shape[1] // k
    for row, values in enumerate(pre):
        for start in range(0, pre.shape[1], size):
            best = max(range(start, start + size), key=lambda i: values[i])
            features[row, best] = relu(values[best])
    return features


def layer_norm(x: Array, eps: float) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / (x.std(axis=1, ddof=1, keepdims=True) + eps)


def rescaled(x: Array) -> Array:
    return x * np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
