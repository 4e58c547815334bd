"""Real detectors across layers, and data sets that they are fitted on."""

from pathlib import Path

import numpy as np

from probes import DatasetWriter, Detector, Max
from probes.cascade import Cascade, cascade_of
from probes.ensemble import Ensemble
from probes.layer_delta import LayerDelta
from probes.layer_directions import LayerDeltaDirections
from probes.layer_scores import LayerScores
from tests.probes.base import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    identity,
)

LAYERS = (HOOK_POINT, "blocks.5.hook_resid_post", LATER_HOOK_POINT)
"""Hook points of `write_layers`."""


def layer_scores(n: int = 1) -> LayerScores:
    return LayerScores(
        means=np.full(n, 3, dtype=np.float32),
        deviations=np.full(n, 0.5, dtype=np.float32),
        factor=floats(n, n, seed=67),
    )


def layer_delta() -> LayerDelta:
    return LayerDelta(
        name="layer-delta",
        hook_points=(HOOK_POINT, LATER_HOOK_POINT),
        means=floats(1, D_MODEL, seed=68),
        deviations=np.linspace(0.5, 2, D_MODEL, dtype=np.float32)[None, :],
        scores=layer_scores(),
        aggregator=Max(),
    )


def layer_directions() -> LayerDeltaDirections:
    return LayerDeltaDirections(
        name="layer-directions",
        hook_points=(HOOK_POINT, LATER_HOOK_POINT),
        rows=floats(1, 3, D_MODEL, seed=69),
        offsets=floats(1, 3, seed=70),
        scores=layer_scores(),
        aggregator=Max(),
    )


def ensemble(combination: str = "mean") -> Ensemble:
    is_logistic = combination == "logistic"
    return Ensemble(
        name=f"ensemble-{combination}",
        hook_points=(HOOK_POINT, LATER_HOOK_POINT, HOOK_POINT),
        weights=floats(3, D_MODEL, seed=71),
        biases=floats(3, seed=72),
        means=floats(3, seed=73),
        deviations=np.array([0.5, 1, 2], dtype=np.float32),
        combination=combination,
        aggregator=Max(),
        member_weights=floats(3, seed=74) if is_logistic else None,
        bias=0.5 if is_logistic else 0.0,
    )


def cascade(
    first: Detector, second: Detector, *, level: float = 0.0, floor: float = -1.5
) -> Cascade:
    return cascade_of(
        name=f"cascade-{second.name}",
        first=first,
        second=second,
        level=level,
        floor=floor,
        aggregator=Max(),
    )


def write_layers(path: Path, *, n_requests: int = 60, seed: int = 0) -> None:
    """
    Requests of 8 to 19 tokens at `LAYERS`, whose activations add up.

    In every third the last three tokens add to the second difference, and take from
    the first what keeps the last activation as it was; ``behaviour = "bypass"``.
    """
    rng = np.random.default_rng(seed)
    mix = floats(D_MODEL, D_MODEL, seed=98)
    direction = floats(D_MODEL, seed=97) * np.float32(3)
    with DatasetWriter(path, identity(), LAYERS, D_MODEL) as writer:
        for index in range(n_requests):
            n_tokens, is_planted = int(rng.integers(8, 20)), index % 3 == 0
            steps = rng.normal(size=(len(LAYERS), n_tokens, D_MODEL))
            steps = (steps @ mix + 1).astype(np.float32)
            if is_planted:
                steps[1, -3:] -= direction
                steps[2, -3:] += direction
            writer.append(
                f"request-{seed}-{index}",
                dict(zip(LAYERS, np.cumsum(steps, axis=0), strict=True)),
                rng.integers(0, 1 << 20, n_tokens).astype(np.int32),
                np.arange(n_tokens, dtype=np.int32),
                n_prompt_tokens=4,
                labels={"behaviour": "bypass" if is_planted else "none"},
            )
