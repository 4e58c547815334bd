"""A bundle of one detector of every family, with canaries."""

import numpy as np

from probes import Bundle, Calibration, Detector, ProjectionBank, new_bundle
from probes.canaries import Canary
from probes.fit.calibrate import calibrate
from probes.fit.plan_calibration import CalibrationPlan
from probes.fit.trajectories import Trajectories, length_grid
from tests.probes.builders import D_MODEL, detectors, floats, identity


def calibration() -> Calibration:
    """A calibration of `detectors` by real ranks of drawn numbers."""
    names = [d.name for d in detectors()]
    rng = np.random.default_rng(0)
    grid = length_grid(64)
    benign = Trajectories(
        grid=grid,
        n_tokens=rng.integers(1, 65, 400),
        statistics=rng.normal(size=(400, 1, len(names))).repeat(len(grid), axis=1),
        is_monotone=np.ones(len(names), dtype=np.bool_),
    )
    return calibrate(benign, names, CalibrationPlan(alpha=0.05), "d" * 64)


def build(**changes: object) -> Bundle:
    fields: dict[str, object] = {
        "name": "set",
        "version": "1",
        "identity": identity(),
        "detectors": detectors(),
        "calibration": calibration(),
        "canaries": canaries(detectors()),
        "fit_sha256": "f" * 64,
    }
    return new_bundle(**(fields | changes))  # type: ignore[arg-type]


def canaries(detectors: list[Detector], n_tokens: int = 5) -> tuple[Canary, ...]:
    """Two canaries of what the bank of *detectors* makes of drawn activations."""
    bank = ProjectionBank.compile(detectors)
    made = []
    for seed in (70, 80):
        columns, squared_norms = bank.project(
            {
                h: floats(n_tokens, D_MODEL, seed=seed + i)
                for i, h in enumerate(bank.hook_points)
            }
        )
        made.append(
            Canary(
                token_ids=tuple(range(seed, seed + n_tokens)),
                columns=columns,
                squared_norms=squared_norms,
            )
        )
    return tuple(made)
