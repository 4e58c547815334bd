"""Holds a bundle against a data set: its canaries, and the rate that it promises."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.bank import ProjectionBank
from probes.bundle import Bundle, check_identity
from probes.canaries import compare
from probes.dataset import Dataset
from probes.errors import ArtifactError
from probes.fit.canaries import canary_of, prompt_start
from probes.fit.intervals import clopper_pearson
from probes.fit.judge import judge
from probes.fit.trajectories import Progress, trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class RealisedRate:
    """
    How many of some benign requests a bundle flags.

    Attributes:
        longest: Longest length of each bin in tokens.

        n_requests: By bin, how many there are.

        n_flagged: By bin, how many of them are flagged.

        n_unlike: Those that a gate turned away, in the bins too.

        n_beyond: Those longer than all that was calibrated on: nothing is promised of
            them, and they are in no bin.

        low: Lower end of the 95 % interval of the rate over all bins (Clopper and
            Pearson 1934).

        high: Its upper end.
    """

    longest: tuple[int, ...]
    n_requests: tuple[int, ...]
    n_flagged: tuple[int, ...]
    n_unlike: int
    n_beyond: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Share of those in a bin that is flagged; of none NaN."""
        n = sum(self.n_requests)
        return sum(self.n_flagged) / n if n else float("nan")


def check_source(bundle: Bundle, dataset: Dataset) -> None:
    """
    Raise `ArtifactError` unless *dataset* holds what *bundle* was made to read.

    Names the data set and the first field that differs, with both values.
    """
    check_identity(
        bundle,
        dataset.identity,
        hook_points=dataset.activations,
        normalisation=dataset.normalisation,
        where=str(dataset.path),
    )


def realised_rate(
    bundle: Bundle,
    dataset: Dataset,
    benign: Sequence[int],
    progress: Progress | None = None,
) -> RealisedRate:
    """
    Judge requests of *dataset* as the monitor would, and count those that are flagged.

    Args:
        bundle: Detectors and what they are held against.

        dataset: Of the bundle's model.

        benign: Which requests; those without rows are left out.

        progress: Called with requests done and requests in all.

    Raises:
        ArtifactError: *dataset* is of another model, or none of *benign* has rows.
    """
    check_source(bundle, dataset)
    found = trajectories(dataset, bundle.detectors, benign, progress)
    if not len(found.n_tokens):
        raise ArtifactError(f"{dataset.path}: expected benign requests, found none")
    judged = judge(found, bundle.calibration)
    n_bins = bundle.calibration.n_bins
    is_flagged = judged.is_flagged.any(axis=1) & (judged.bins < n_bins)
    *counts, n_beyond = np.bincount(judged.bins, minlength=n_bins + 1).tolist()
    flagged = np.bincount(judged.bins[is_flagged], minlength=n_bins)
    low, high = clopper_pearson(int(is_flagged.sum()), sum(counts))
    return RealisedRate(
        longest=tuple(bundle.calibration.longest.tolist()),
        n_requests=tuple(counts),
        n_flagged=tuple(flagged.tolist()),
        n_unlike=int((judged.is_unlike & (judged.bins < n_bins)).sum()),
        n_beyond=n_beyond,
        low=low,
        high=high,
    )


def replay_canaries(bundle: Bundle, dataset: Dataset) -> tuple[int, float]:
    """
    Hold the canaries of *bundle* against the requests of *dataset* with their tokens.

    Returns:
        How many of them are in the data set, and by how much they differ at most, as
        `probes.canaries.compare` has it.

    Raises:
        ArtifactError: *dataset* is of another model.
    """
    check_source(bundle, dataset)
    bank = ProjectionBank.compile(bundle.detectors)
    wanted = {canary.token_ids: canary for canary in bundle.canaries}
    lengths = {len(token_ids) for token_ids in wanted}
    expected, found = [], []
    for index in range(len(dataset.requests)):
        for length in lengths:
            start = prompt_start(dataset, index, length)
            if start in wanted:
                expected.append(wanted.pop(start))
                found.append(canary_of(dataset, bank, index, start))
        if not wanted:
            break
    return len(expected), compare(expected, found)
