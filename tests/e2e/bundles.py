"""A bundle for the organism with detectors that need no fitting."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probes import (
    LinearProbe,
    Max,
    fixed_thresholds,
    identity_of,
    new_bundle,
    save_bundle,
)
from probes.bank import ProjectionBank
from probes.canaries import Canary
from tests.e2e.rows import reference_activations

HOOK_POINTS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def make_canary(model: Path, detectors: Sequence[LinearProbe]) -> Canary:
    """Return what *detectors* make of a few tokens, as Hugging Face computes them."""
    token_ids = tuple(range(20, 44))
    activations = {
        hook_point: reference_activations(
            model, {"canary": list(token_ids)}, int(hook_point.split(".")[1])
        )["canary"]
        for hook_point in HOOK_POINTS
    }
    columns, norms = ProjectionBank.compile(detectors).project(activations)
    return Canary(token_ids=token_ids, columns=columns, squared_norms=norms)


def make_bundle(
    path: Path, model: Path, *, threshold: float = 1e9, has_canary: bool = False
) -> None:
    """Write a bundle of one random linear probe a hook point, for *model*."""
    identity = identity_of(model, "float32")
    rng = np.random.default_rng(3)
    detectors = [
        LinearProbe(
            name=f"random-{index}",
            hook_point=hook_point,
            weight=rng.standard_normal(identity.d_model).astype(np.float32),
            bias=0.0,
            aggregator=Max(),
        )
        for index, hook_point in enumerate(HOOK_POINTS)
    ]
    save_bundle(
        path,
        new_bundle(
            name="random",
            version="1",
            identity=identity,
            detectors=detectors,
            calibration=fixed_thresholds({d.name: threshold for d in detectors}),
            canaries=[make_canary(model, detectors)] if has_canary else (),
        ),
    )
