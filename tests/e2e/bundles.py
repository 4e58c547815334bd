"""A bundle for the organism with detectors that need no fitting."""

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

HOOK_POINTS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


def make_bundle(path: Path, model: Path, *, threshold: float = 1e9) -> None:
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
        ),
    )
