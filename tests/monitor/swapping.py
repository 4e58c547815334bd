"""Detector sets to swap between and the steps of an engine that computes several."""

from dataclasses import replace

import numpy as np

from monitor.core import Monitor
from monitor.records import StepBatch
from probes.aggregate import EMAMax, Max, Mean
from probes.bank import ProjectionBank
from probes.bank_union import BankUnion
from probes.linear import LinearProbe
from tests.monitor.builders import (
    D_MODEL,
    EARLY,
    LATE,
    Rows,
    batch,
    calibration,
    detectors,
    probe,
)

SETS: dict[str, list[LinearProbe]] = {
    "a": detectors(),
    "b": [probe("max", LATE, 3, Max()), probe("slow", EARLY, 2, Mean())],
    "c": [probe("ema", EARLY, 0, EMAMax(alpha=0.25))],
}
BANKS = {name: ProjectionBank.compile(found) for name, found in SETS.items()}
PAIRS = [("a",), ("b",), ("c",), ("a", "b"), ("b", "a"), ("b", "c"), ("c", "a", "b")]
UNIONS = {names: BankUnion.compile({n: BANKS[n] for n in names}) for names in PAIRS}


def monitor_of(first: str, *, max_shadow_bytes: int = 0) -> Monitor:
    """A monitor with the set *first* live, which knows every bank of `UNIONS`."""
    names = [probe.name for probe in SETS[first]]
    made = Monitor(
        BANKS[first],
        SETS[first],
        calibration(names=names),
        max_shadow_bytes=max_shadow_bytes,
        bundle_digest=first,
    )
    made.sets.set_layouts({u.digest: u.layout for u in UNIONS.values()})
    return made


def add(monitor: Monitor, name: str) -> None:
    """Let *monitor* watch with the set *name* too."""
    names = [probe.name for probe in SETS[name]]
    monitor.sets.watch(name, BANKS[name], SETS[name], calibration(names=names))


def made_with(sent: StepBatch, names: tuple[str, ...]) -> StepBatch:
    """The batch as an engine sends it that computes the union of *names*."""
    union = UNIONS[names]
    columns = {
        h: sent.activations[h] @ union.weights[h].T + union.biases[h]
        for h in union.hook_points
    }
    norms = {h: sent.squared_norms[h] for h in union.hook_points}
    return replace(
        sent,
        bank_digest=union.digest,
        activations={},
        columns=columns,
        squared_norms=norms,
    )


def step_of(*rows: Rows, step: int, finished: tuple[str, ...] = ()) -> StepBatch:
    """Activations at both hook points."""
    return batch(*rows, step=step, finished=finished, holds_activations=True)


def loud(n_rows: int, seed: int) -> list[list[float]]:
    """Activations of which some cross a threshold."""
    rng = np.random.default_rng(seed)
    values: list[list[float]] = rng.normal(0, 1.2, (n_rows, D_MODEL)).tolist()
    return values
