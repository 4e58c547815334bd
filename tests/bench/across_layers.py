"""What detectors across layers find that those of one layer do not, and their cost.

usage: python -m tests.bench.across_layers [--repetitions 10]

Benign tokens are normal at the first hook point, and so is what each of three blocks
adds, a third as much, along axes of its own. In every second of 200 requests the last
three tokens take a detour: the first block adds 10 deviations along one direction that
the next one takes away again. Detectors see 400 other, benign requests of 12 tokens.
The AUROC is by the maximum over a request's tokens, as the mean over the repetitions.

Costs are of 2,048 tokens of d_model 4096 at three hook points, from activations to
evidence, the best of three runs. The cascade's first stage lets nine in ten through.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probes import Dataset, DatasetWriter, Max, load_dataset, score
from probes.arrays import Float32
from probes.cascade import cascade_of
from probes.detector import Detector
from probes.fit.baselines import fit_isolation_forest, fit_lof, fit_one_class_svm
from probes.fit.benign import fit_nearest
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.layer_delta import fit_layer_delta
from probes.fit.mahalanobis import fit_mahalanobis
from probes.layer_delta import LayerDelta
from probes.layer_directions import LayerDeltaDirections
from probes.layer_scores import LayerScores
from probes.linear import LinearProbe
from tests.probes.builders import floats, identity

D_MODEL, N_TOKENS, N_BENIGN, N_TESTED, SHIFT = 64, 12, 400, 200, 10.0
HOOKS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))


def write(path: Path, seed: int) -> Dataset:
    """Benign requests, then tested ones, of which every second takes the detour."""
    rng = np.random.default_rng(seed)
    axes = [np.linalg.qr(rng.normal(size=(D_MODEL, D_MODEL)))[0] for _ in HOOKS]
    spread, rows_of = np.linspace(0.3, 3, D_MODEL), (N_TOKENS, D_MODEL)
    detour = SHIFT * spread[20] * axes[1][20]
    with DatasetWriter(path, identity(d_model=D_MODEL), HOOKS, D_MODEL) as writer:
        for index in range(N_BENIGN + N_TESTED):
            steps = np.stack([rng.normal(size=rows_of) * spread @ a for a in axes])
            steps[0] *= 3
            if index >= N_BENIGN and index % 2:
                steps[1, -3:] += detour
                steps[2, -3:] -= detour
            writer.append(
                f"r{index}",
                dict(
                    zip(HOOKS, np.cumsum(steps, axis=0, dtype=np.float32), strict=True)
                ),
                np.arange(N_TOKENS),
                np.arange(N_TOKENS),
                n_prompt_tokens=1,
                labels={},
            )
    return load_dataset(path)


def fitted(dataset: Dataset) -> dict[str, Detector]:
    """All that are compared; those of one layer at each."""
    common: dict[str, Any] = {
        "name": "d",
        "benign": range(N_BENIGN),
        "aggregator": Max(),
    }
    found: dict[str, Detector] = {}
    for rank in (None, 48, 16):
        form = "whole" if rank is None else f"rank {rank}"
        found[f"layer delta, {form}"] = fit_layer_delta(
            dataset, hook_points=HOOKS, rank=rank, **common
        )
    families: dict[str, Callable[..., Detector]] = {
        "Mahalanobis": fit_mahalanobis,
        "nearest of a coreset": fit_nearest,
        "isolation forest": fit_isolation_forest,
        "LOF": fit_lof,
        "one-class SVM": fit_one_class_svm,
    }
    for name, fit in families.items():
        for layer, hook in enumerate(HOOKS):
            found[f"{name}, layer {layer}"] = fit(dataset, hook_point=hook, **common)
    return found


def aurocs(n_repetitions: int) -> dict[str, float]:
    """The mean AUROC of each detector."""
    found: dict[str, list[float]] = {}
    for seed in range(n_repetitions):
        with tempfile.TemporaryDirectory() as folder:
            dataset = write(Path(folder) / "data", seed)
            for name, detector in fitted(dataset).items():
                tested = range(N_BENIGN, N_BENIGN + N_TESTED)
                statistics = request_statistics(dataset, detector, tested)
                separated = auroc(statistics[1::2], statistics[::2])
                found.setdefault(name, []).append(separated)
    return {name: float(np.mean(values)) for name, values in found.items()}


def costs(d_model: int, n_tokens: int) -> dict[str, float]:
    """Microseconds a token, by what is evaluated."""
    x = {hook: floats(n_tokens, d_model, seed=i) for i, hook in enumerate(HOOKS[:3])}
    probe = LinearProbe(
        name="probe",
        hook_point=HOOKS[0],
        weight=floats(d_model, seed=5),
        bias=0.0,
        aggregator=Max(),
    )
    whole = LayerDelta(
        name="whole",
        hook_points=HOOKS[:3],
        means=np.zeros((2, d_model), dtype=np.float32),
        deviations=np.ones((2, d_model), dtype=np.float32),
        scores=_scores(d_model),
        aggregator=Max(),
    )
    found: dict[str, Detector] = {
        "linear probe": probe,
        "layer delta, whole": whole,
        "layer delta, whole, as columns": _directions(d_model, d_model),
        "layer delta, rank 16": _directions(16, d_model),
        "cascade, probe and layer delta": cascade_of(
            name="cascade",
            first=probe,
            second=whole,
            level=float(np.quantile(score(probe, x), 0.9)),
            floor=0.0,
            aggregator=Max(),
        ),
    }
    return {name: _seconds(one, x) * 1e6 / n_tokens for name, one in found.items()}


def _scores(d_model: int) -> LayerScores:
    return LayerScores(
        means=np.full(2, np.sqrt(d_model), dtype=np.float32),
        deviations=np.ones(2, dtype=np.float32),
        factor=np.eye(2, dtype=np.float32),
    )


def _directions(rank: int, d_model: int) -> LayerDeltaDirections:
    return LayerDeltaDirections(
        name="directions",
        hook_points=HOOKS[:3],
        rows=np.stack([np.eye(rank, d_model, dtype=np.float32)] * 2),
        offsets=np.zeros((2, rank), dtype=np.float32),
        scores=_scores(d_model),
        aggregator=Max(),
    )


def _seconds(detector: Detector, activations: dict[str, Float32]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        score(detector, activations)
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    """Print the AUROCs, the best layer of each family, and the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    args = parser.parse_args()
    for name, value in aurocs(args.repetitions).items():
        print(f"{name:34} AUROC {value:.3f}")
    for name, value in costs(4096, 2048).items():
        print(f"{name:34} {value:7.1f} us a token")


if __name__ == "__main__":
    main()
