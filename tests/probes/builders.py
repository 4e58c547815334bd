"""Real detectors, data sets and checkpoints, small and seeded, for tests."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from probes import (
    Aggregator,
    AttentionMean,
    AttentionProbe,
    DatasetWriter,
    Detector,
    EMAMax,
    LinearProbe,
    Mahalanobis,
    Max,
    Mean,
    MLPProbe,
    MultiLayerProbe,
    MultiMax,
    MultiMaxProbe,
    RollingAttentionMax,
    SAEFeatureDetector,
)
from probes.aggregate import RollingMeanMax
from probes.arrays import Float32
from probes.bilinear import BilinearProbe
from probes.knn import NearestNeighbours
from probes.reconstruction import SAEReconstruction
from probes.relative import RelativeMahalanobis
from probes.sae_formats.record import SAE
from probes.topk import TopKFeatureDetector
from tests.probes.base import D_MODEL as D_MODEL
from tests.probes.base import HOOK_POINT as HOOK_POINT
from tests.probes.base import LATER_HOOK_POINT as LATER_HOOK_POINT
from tests.probes.base import floats as floats
from tests.probes.base import identity as identity
from tests.probes.layer_builders import (
    cascade,
    ensemble,
    layer_delta,
    layer_directions,
)


def require_sklearn() -> None:
    """Skip where scikit-learn is not installed; fail there in CI."""
    if importlib.util.find_spec("sklearn") is not None:
        return
    message = "scikit-learn is not installed: pip install 'innerwatch[fit]'"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message, allow_module_level=True)


def linear(name: str = "linear", hook_point: str = HOOK_POINT) -> LinearProbe:
    return LinearProbe(
        name=name,
        hook_point=hook_point,
        weight=floats(D_MODEL, seed=1),
        bias=-0.25,
        aggregator=Max(),
    )


def sae(activation: str = "jumprelu", **changes: Any) -> SAE:
    """A random SAE with 60 features and everything that its activation needs."""
    d_sae = 60
    needs: dict[str, dict[str, Any]] = {
        "relu": {},
        "jumprelu": {"threshold": np.abs(floats(d_sae, seed=32))},
        "gated": {
            "b_gate": floats(d_sae, seed=33),
            "r_mag": floats(d_sae, seed=34) / np.float32(3),
            "b_mag": floats(d_sae, seed=35),
        },
        "topk": {"k": 6},
        "groupmax": {"k": 12},
    }
    fields: dict[str, Any] = {
        "W_enc": floats(D_MODEL, d_sae, seed=30),
        "b_enc": floats(d_sae, seed=31),
        "activation": activation,
        "hook_points": (LATER_HOOK_POINT,),
        "model_name": "tiny",
        "W_dec": floats(d_sae, D_MODEL, seed=36) / np.float32(D_MODEL),
        "b_dec": floats(D_MODEL, seed=37),
    }
    return SAE(**(fields | needs[activation] | changes))


def crosscoder() -> SAE:
    """A random crosscoder that reads two hook points."""
    return sae(
        "jumprelu",
        W_enc=floats(2 * D_MODEL, 60, seed=38),
        hook_points=(HOOK_POINT, LATER_HOOK_POINT),
        W_dec=None,
        b_dec=None,
    )


def sae_features(
    activation: str = "jumprelu", rule: str = "weighted_sum", **changes: Any
) -> SAEFeatureDetector:
    norm = changes.get("input_norm", "none")
    return SAEFeatureDetector.from_sae(
        sae(activation, **changes),
        name=f"sae-{activation}-{norm}-{rule}",
        features=[7, 3, 40],
        rule=rule,
        feature_weights=[1.0, 0.5, -2.0],
        levels=[0.5, 0.0, 1.0],
        aggregator=EMAMax(alpha=0.25),
    )


def topk_features(rule: str = "any", **changes: Any) -> TopKFeatureDetector:
    return TopKFeatureDetector.from_sae(
        sae("topk", **changes),
        name=f"topk-{rule}",
        features=[7, 3, 40],
        rule=rule,
        levels=[0.5, 0.0, 1.0],
        aggregator=Max(),
    )


def mahalanobis(
    rank: int = 4, d_model: int = D_MODEL, mean_scale: float = 3.0, seed: int = 4
) -> Mahalanobis:
    basis = np.linalg.qr(floats(d_model, rank, seed=seed).astype(np.float64))[0]
    return Mahalanobis(
        name=f"mahalanobis-{rank}",
        hook_point=HOOK_POINT,
        mean=floats(d_model, seed=seed + 1) * np.float32(mean_scale),
        directions=np.ascontiguousarray(basis.T, dtype=np.float32),
        variances=np.linspace(9, 2, rank).astype(np.float32),
        residual_variance=1.0,
        aggregator=Mean(),
    )


def multilayer() -> MultiLayerProbe:
    return MultiLayerProbe(
        name="multilayer",
        hook_points=(HOOK_POINT, LATER_HOOK_POINT),
        weights=floats(2, D_MODEL, seed=30),
        bias=0.75,
        aggregator=Max(),
    )


def mlp(n_hidden: int = 1, width: int = 5) -> MLPProbe:
    return MLPProbe(
        name=f"mlp-{n_hidden}",
        hook_point=HOOK_POINT,
        weight=floats(width, D_MODEL, seed=31),
        bias=floats(width, seed=32),
        hidden_weights=floats(n_hidden, width, width, seed=33),
        hidden_biases=floats(n_hidden, width, seed=34),
        out_weight=floats(width, seed=35),
        out_bias=-0.5,
        aggregator=Mean(),
    )


def attention(aggregator: Aggregator | None = None, width: int = 5) -> AttentionProbe:
    aggregator = aggregator or AttentionMean(n_heads=3)
    return AttentionProbe(
        name=aggregator.name,
        hook_point=LATER_HOOK_POINT,
        weight=floats(width, D_MODEL, seed=41),
        bias=floats(width, seed=42),
        hidden_weights=floats(1, width, width, seed=43),
        hidden_biases=floats(1, width, seed=44),
        queries=floats(3, width, seed=45),
        values=floats(3, width, seed=46),
        value_biases=floats(3, seed=47),
        aggregator=aggregator,
    )


def multi_max(width: int = 5) -> MultiMaxProbe:
    return MultiMaxProbe(
        name="multi-max",
        hook_point=HOOK_POINT,
        weight=floats(width, D_MODEL, seed=51),
        bias=floats(width, seed=52),
        hidden_weights=floats(1, width, width, seed=53),
        hidden_biases=floats(1, width, seed=54),
        values=floats(3, width, seed=55),
        value_biases=floats(3, seed=56),
        aggregator=MultiMax(n_heads=3),
    )


def relative() -> RelativeMahalanobis:
    return RelativeMahalanobis(
        name="relative",
        served=mahalanobis(4),
        background=mahalanobis(D_MODEL, seed=60),
        aggregator=Max(),
    )


def nearest(
    *, is_normalised: bool, n: int = 6, k: int = 2, d_model: int = D_MODEL
) -> NearestNeighbours:
    coreset = floats(n, d_model, seed=61) + np.float32(2)
    if is_normalised:
        coreset /= np.linalg.norm(coreset, axis=1, keepdims=True)
    return NearestNeighbours(
        name=f"nearest-{'cosine' if is_normalised else 'euclidean'}",
        hook_point=HOOK_POINT,
        coreset=coreset,
        k=k,
        is_normalised=is_normalised,
        aggregator=Max(),
    )


def bilinear() -> BilinearProbe:
    return BilinearProbe(
        name="bilinear",
        hook_point=HOOK_POINT,
        left=floats(3, D_MODEL, seed=62),
        left_bias=floats(3, seed=63),
        right=floats(3, D_MODEL, seed=64),
        right_bias=floats(3, seed=65),
        feature_weights=floats(3, seed=66),
        bias=0.5,
        aggregator=Max(),
    )


def detectors() -> list[Detector]:
    """One of every family and shape, at two hook points."""
    return [
        linear(),
        linear("linear-later", LATER_HOOK_POINT),
        sae_features("jumprelu"),
        sae_features("relu", "any"),
        sae_features("gated", "all"),
        sae_features("groupmax", "count"),
        sae_features("relu", input_norm="rms"),
        sae_features("jumprelu", input_norm="layer_norm", norm_eps=1e-5),
        SAEFeatureDetector.from_sae(
            crosscoder(), name="crosscoder", features=[5], aggregator=Max()
        ),
        topk_features(),
        topk_features("weighted_sum"),
        SAEReconstruction(
            name="reconstruction", sae=sae("topk"), aggregator=RollingMeanMax()
        ),
        mahalanobis(rank=4),
        mahalanobis(rank=D_MODEL),
        relative(),
        nearest(is_normalised=True),
        nearest(is_normalised=False),
        bilinear(),
        layer_delta(),
        layer_directions(),
        cascade(linear(), mlp()),
        cascade(linear(), relative()),
        cascade(sae_features(), nearest(is_normalised=True)),
        cascade(linear(), topk_features()),
        cascade(linear(), layer_delta()),
        ensemble("mean"),
        ensemble("max"),
        ensemble("logistic"),
        multilayer(),
        mlp(n_hidden=0),
        mlp(n_hidden=2),
        attention(),
        attention(RollingAttentionMax(n_heads=3, window=4)),
        multi_max(),
    ]


def write_dataset(
    path: Path, *, n_requests: int = 60, seed: int = 0, shift: float = 4.0
) -> None:
    """
    Requests of 8 to 19 tokens, others for each *seed*; in every third, a few
    completion tokens move.

    Those carry ``behaviour = "backdoor"``; the others ``behaviour = "none"``.
    """
    rng = np.random.default_rng(seed)
    direction = floats(D_MODEL, seed=99)
    direction /= np.linalg.norm(direction)
    with DatasetWriter(path, identity(), [HOOK_POINT], D_MODEL) as writer:
        for index in range(n_requests):
            n_tokens, is_planted = int(rng.integers(8, 20)), index % 3 == 0
            rows = rng.normal(size=(n_tokens, D_MODEL)).astype(np.float32) + 1
            if is_planted:
                rows[-3:] += np.float32(shift) * direction
            writer.append(
                f"request-{seed}-{index}",
                {HOOK_POINT: rows},
                rng.integers(0, 1 << 20, n_tokens).astype(np.int32),
                np.arange(n_tokens, dtype=np.int32),
                n_prompt_tokens=4,
                labels={"behaviour": "backdoor" if is_planted else "none"},
            )


def write_sae(
    path: Path,
    cfg: dict[str, object],
    *,
    d_in: int = D_MODEL,
    d_sae: int = 30,
    dtype: type[np.floating] = np.float32,
) -> dict[str, Float32]:
    """A SAELens folder; returns its tensors as written."""
    path.mkdir()
    tensors = {
        "W_enc": floats(d_in, d_sae, seed=11).astype(dtype),
        "W_dec": floats(d_sae, d_in, seed=12).astype(dtype),
        "b_enc": floats(d_sae, seed=13).astype(dtype),
        "b_dec": floats(d_in, seed=14).astype(dtype),
    }
    if cfg.get("architecture") == "jumprelu":
        tensors["threshold"] = np.abs(floats(d_sae, seed=15)).astype(dtype)
    safetensors.numpy.save_file(tensors, path / "sae_weights.safetensors")
    full = {"d_in": d_in, "d_sae": d_sae, **cfg}
    (path / "cfg.json").write_text(json.dumps(full))
    return tensors
