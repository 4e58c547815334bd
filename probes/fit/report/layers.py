# A bundle's detectors say how good they are where they read. Whether another layer
# would have been better only a fit at every layer can say: a plain one, the same at
# each of them, measured on requests that it has not seen.
"""How well each hook point of a data set separates, by a direction fitted there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32, Float64
from probes.dataset import Dataset
from probes.fit.chunks import read_rows
from probes.fit.evaluate import auroc
from probes.fit.report.scored import Scored
from probes.fit.select import rows_of_tokens
from probes.hooks import layer_of

N_FOLDS = 5
MAX_REQUESTS = 2000
"""Of each kind: more do not change an AUROC that a picture shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeparation:
    """
    What a difference of means at one hook point tells of one kind.

    Attributes:
        hook_point: Where it was fitted and read.

        layer: Its number.

        kind: Against benign requests.

        auroc: Over `N_FOLDS` folds, each scored by a fit on the others.

        n: Requests of the kind.
    """

    hook_point: str
    layer: int
    kind: str
    auroc: float
    n: int


def layer_separations(
    dataset: Dataset, scored: Scored, seed: int = 0
) -> list[LayerSeparation]:
    """
    AUROC at each hook point, of each kind with `N_FOLDS` requests or more.

    A request is the mean activation of its answer (from the prompt's last token on);
    the direction is the difference of class means over the pooled variance of each
    coordinate (diagonal discriminant analysis: Dudoit, Fridlyand and Speed 2002).
    """
    rng = np.random.default_rng(seed)
    chosen = {
        kind: _drawn(scored, kind, rng) for kind in [scored.benign, *scored.other_kinds]
    }
    found = []
    for hook_point in sorted(dataset.activations, key=layer_of):
        means = {
            kind: _answer_means(dataset, hook_point, indices)
            for kind, indices in chosen.items()
        }
        benign = means[scored.benign]
        for kind in scored.other_kinds:
            if min(len(means[kind]), len(benign)) >= N_FOLDS:
                found.append(
                    LayerSeparation(
                        hook_point=hook_point,
                        layer=layer_of(hook_point),
                        kind=kind,
                        auroc=cross_validated_auroc(means[kind], benign),
                        n=len(means[kind]),
                    )
                )
    return found


def cross_validated_auroc(positive: Float32, benign: Float32) -> float:
    """
    Mean AUROC over folds of the rows of (n, d_model) each, dealt in turn.

    Scores of different fits are not compared with each other.
    """
    areas = []
    for fold in range(N_FOLDS):
        is_held = [np.arange(len(x)) % N_FOLDS == fold for x in (positive, benign)]
        direction = _direction(positive[~is_held[0]], benign[~is_held[1]])
        held = (
            x[one].astype(np.float64) @ direction
            for x, one in zip((positive, benign), is_held, strict=True)
        )
        areas.append(auroc(*held))
    return float(np.mean(areas))


def _direction(positive: Float32, benign: Float32) -> Float64:
    ends = [x.mean(axis=0, dtype=np.float64) for x in (positive, benign)]
    variance = sum(x.var(axis=0, dtype=np.float64) for x in (positive, benign)) / 2
    # A coordinate that hardly varies must not decide alone.
    floor = variance.mean() * 1e-3
    direction: Float64 = (ends[0] - ends[1]) / (variance + floor + 1e-300)
    return direction


def _drawn(scored: Scored, kind: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Requests of *kind*, answered or not, in random order."""
    indices = scored.indices[scored.kinds == kind]
    return rng.permutation(indices)[:MAX_REQUESTS]


def _answer_means(
    dataset: Dataset, hook_point: str, indices: NDArray[np.int64]
) -> Float32:
    """Mean activations (n, d_model) of the requests *indices* that have an answer."""
    activations = dataset.activations[hook_point]
    parts = []
    for index in indices.tolist():
        rows, whole = rows_of_tokens(dataset, index, "answer"), dataset.rows_of(index)
        if len(rows):
            read = read_rows(activations, whole)
            parts.append(read[rows - whole.start].mean(axis=0))
    return np.array(parts, dtype=np.float32).reshape(len(parts), activations.shape[1])
