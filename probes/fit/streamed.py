# What is in memory at once: a chunk of rows in float64 (a few times
# `chunks.CHUNK_BYTES`); `COVARIANCE_BYTES` of sums for covariances, one for each
# different set of rows (128 MiB at d_model 4096), as much again when they are finished
# and a few matrices on the way; some bytes a row and task; the minimisers' vectors.
# Never the data set, and where there are more covariances there are more passes.
"""Fits many linear detectors in few passes over a data set larger than memory."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Int64
from probes.dataset import Dataset
from probes.detector import Detector
from probes.fit.bags import Bags
from probes.fit.checkpoint import Checkpoint
from probes.fit.chunks import n_rows
from probes.fit.directions import as_probe, lda_direction, mass_mean_direction
from probes.fit.logistic import LogisticOptions
from probes.fit.mahalanobis import from_covariance
from probes.fit.moments import Mask, Moments, Progress, gather
from probes.fit.stream_logistic import Classes, minimise

COVARIANCE_BYTES = 512 << 20

KINDS = ("logistic", "mass_mean", "lda", "mahalanobis")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamTask:
    """
    A detector to be fitted from passes over a data set.

    Attributes:
        name: Of the detector.

        kind: One of `KINDS`. A logistic regression may read several hook points.

        hook_points: Where it reads.

        positive: Rows of each request that shows the behaviour; none for a
            Mahalanobis detector.

        negative: Rows of each that does not, or that is benign.

        aggregator: Of the detector.

        logistic: How a logistic regression is fitted: all rows are, whatever
            `max_rows` says.

        rank: Of a Mahalanobis detector; full where it is None.
    """

    name: str
    kind: str
    hook_points: tuple[str, ...]
    positive: tuple[Int64, ...]
    negative: tuple[Int64, ...]
    aggregator: Aggregator
    logistic: LogisticOptions = field(default_factory=LogisticOptions)
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {list(KINDS)}, got {self.kind!r}")
        if not self.negative or (self.kind != "mahalanobis" and not self.positive):
            raise ValueError(
                f"detector {self.name!r}: expected tokens of both kinds, got "
                f"{len(self.positive)} positive and {len(self.negative)} negative "
                f"requests with tokens"
            )
        if not self.hook_points or (
            self.kind != "logistic" and len(self.hook_points) > 1
        ):
            raise ValueError(
                f"detector {self.name!r}: hook_points: expected one, "
                f"got {list(self.hook_points)}"
            )

    @property
    def bags(self) -> Bags:
        return Bags(positive=self.positive, negative=self.negative)


def fit_streamed(
    dataset: Dataset,
    tasks: Sequence[StreamTask],
    *,
    work: Path | None = None,
    max_passes: int = 100,
    progress: Progress | None = None,
) -> dict[str, Detector]:
    """
    Fit *tasks*; those that read the same place share every pass.

    Args:
        dataset: Has activations at all hook points of *tasks*.

        tasks: What to fit, under different names.

        work: A folder where the state is kept, so that an interrupted fit goes on;
            nothing is left there once it is done.

        max_passes: At most this many evaluations of a logistic regression, a round.

        progress: Called with rows done in this pass, rows in all, and what is done.

    Returns:
        By name, in the order of *tasks*.

    Raises:
        ValueError: Two tasks have one name, or data that cannot be fitted.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"name: expected different names, got {sorted(names)}")
    made: dict[str, Detector] = {}
    for index, hook_points in enumerate(sorted({task.hook_points for task in tasks})):
        group = [task for task in tasks if task.hook_points == hook_points]
        made |= _fit_group(dataset, group, work, index, max_passes, progress)
    return {name: made[name] for name in names}


def _fit_group(
    dataset: Dataset,
    tasks: Sequence[StreamTask],
    work: Path | None,
    index: int,
    max_passes: int,
    progress: Progress | None,
) -> dict[str, Detector]:
    key = [dataset.sha256.encode(), repr(max_passes).encode()]
    key += [_key(task) for task in tasks]
    hook_points = tasks[0].hook_points
    masks, names = _masks(dataset, tasks)
    made: dict[str, Detector] = {}
    moments: dict[str, Moments] = {}
    checkpoints: list[Checkpoint] = []
    for batch in _batches(dataset, tasks, names):
        checkpoint = Checkpoint(work, f"moments-{index}-{len(checkpoints)}", key)
        checkpoints.append(checkpoint)
        # The first pass takes in every mean; those after it have more covariances.
        read = {name: masks[name] for name in batch} if moments else masks
        found = gather(dataset, hook_points, read, batch, checkpoint, progress)
        for task in tasks:
            mine = names[task.name]
            is_next = mine["both"] in batch or task.kind == "mass_mean"
            if is_next and task.kind != "logistic" and task.name not in made:
                known = {p: (moments | found).get(n) for p, n in mine.items()}
                made[task.name] = _from_moments(task, known)
        moments |= {n: replace(one, covariance=None) for n, one in found.items()}
    regressions = [task for task in tasks if task.kind == "logistic"]
    checkpoints.append(Checkpoint(work, f"logistic-{index}", key))
    minima = minimise(
        dataset,
        hook_points,
        {
            task.name: Classes(
                bags=task.bags,
                options=task.logistic,
                moments=moments[names[task.name]["both"]],
            )
            for task in regressions
        },
        checkpoint=checkpoints[-1],
        max_passes=max_passes,
        progress=progress,
    )
    for task in regressions:
        weight, bias = minima[task.name]
        made[task.name] = as_probe(
            task.name, hook_points, weight, bias, task.aggregator
        )
    for checkpoint in checkpoints:
        checkpoint.clear()
    return made


def _batches(
    dataset: Dataset, tasks: Sequence[StreamTask], names: Mapping[str, dict[str, str]]
) -> list[list[str]]:
    """The covariances that each pass takes in: as many as memory is given for."""
    kinds = ("lda", "mahalanobis")
    wanted = sorted({names[t.name]["both"] for t in tasks if t.kind in kinds})
    d_model = dataset.activations[tasks[0].hook_points[0]].shape[1]
    most = max(1, COVARIANCE_BYTES // (8 * int(d_model) ** 2))
    return [wanted[i : i + most] for i in range(0, len(wanted), most)] or [[]]


def _from_moments(task: StreamTask, moments: Mapping[str, Moments | None]) -> Detector:
    both, positive = moments["both"], moments["positive"]
    negative, hook_point = moments["negative"], task.hook_points[0]
    assert both is not None  # a task without rows was refused
    if task.kind == "mahalanobis":
        return from_covariance(
            name=task.name,
            hook_point=hook_point,
            mean=both.mean,
            covariance=both.shrunk_covariance(),
            n_rows=both.n_rows,
            aggregator=task.aggregator,
            rank=task.rank,
        )
    assert positive is not None
    assert negative is not None
    weight, bias = (
        lda_direction(task.name, positive, negative, both)
        if task.kind == "lda"
        else mass_mean_direction(task.name, positive.mean, negative.mean)
    )
    return as_probe(task.name, (hook_point,), weight, bias, task.aggregator)


def _masks(
    dataset: Dataset, tasks: Sequence[StreamTask]
) -> tuple[dict[str, Mask], dict[str, dict[str, str]]]:
    """Different sets of rows by digest, and which of them each task reads."""
    masks: dict[str, Mask] = {}
    names: dict[str, dict[str, str]] = {}
    for task in tasks:
        positive, negative = (
            _mask(bags, n_rows(dataset)) for bags in (task.positive, task.negative)
        )
        parts = {"positive": positive, "negative": negative}
        parts["both"] = positive | negative
        names[task.name] = {}
        for part, mask in parts.items():
            digest = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
            names[task.name][part] = digest
            masks[digest] = mask
    return masks, names


def _mask(bags: Sequence[Int64], total: int) -> Mask:
    mask = np.zeros(total, dtype=bool)
    for rows in bags:
        mask[rows] = True
    return mask


def _key(task: StreamTask) -> bytes:
    """All that the state of *task* depends on."""
    digest = hashlib.sha256(
        repr((task.name, task.kind, task.hook_points, task.logistic)).encode()
    )
    for kind in (task.positive, task.negative):
        digest.update(repr([len(rows) for rows in kind]).encode())
        for rows in kind:
            digest.update(rows.astype("<i8").tobytes())
    return digest.digest()
