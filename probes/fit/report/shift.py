"""Whether benign requests still look like those that the calibration rests on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from probes.arrays import Float64, Int64
from probes.bank import ProjectionBank
from probes.bundle import Bundle
from probes.dataset import Dataset
from probes.detector import Detector
from probes.fit.chunks import read_requests
from probes.fit.evaluate import groups_of
from probes.fit.report.scored import Scored
from probes.sae import SAEFeatureDetector
from probes.topk import TopKFeatureDetector

_N_PARTS = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreShift:
    """
    One detector's scores of benign requests against the calibration's.

    Attributes:
        detector: Its name.

        n_reference: Benign requests of the calibration.

        n: Benign requests here.

        psi: Population stability index over the reference's deciles,
            ``sum (q - p) ln(q / p)``; by custom below 0.1 is stable and above 0.25 a
            shift.

        ks: Kolmogorov and Smirnov's distance, in [0, 1].

        ks_p_value: Of that distance, if both were of one distribution.
    """

    detector: str
    n_reference: int
    n: int
    psi: float
    ks: float
    ks_p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """
    On how many tokens a feature is on; no interval, since tokens of a request depend.

    Attributes:
        n: So many ...

        of: ... of so many.

        share: The one over the other; 0 of none.
    """

    n: int
    of: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringShift:
    """
    On how many tokens of benign requests a watched SAE feature is on.

    Attributes:
        detector: Which watches it.

        feature: Its index in the SAE.

        reference: Tokens of the reference data set.

        here: Tokens of this one.

        psi: Population stability index of on and off.

        ks: Kolmogorov and Smirnov's distance of on and off: of the two rates.
    """

    detector: str
    feature: int
    reference: Fired
    here: Fired
    psi: float
    ks: float


def score_shifts(bundle: Bundle, scored: Scored) -> list[ScoreShift]:
    """Peaks of answered benign requests against the calibration's reference."""
    calibration = bundle.calibration
    peaks = scored.judged.peaks[scored.of_kind(scored.benign)]
    if not len(calibration.reference) or not len(peaks):
        return []
    found = []
    for column, name in enumerate(calibration.detectors):
        reference, here = calibration.reference[:, column], peaks[:, column]
        test = ks_2samp(reference, here, method="asymp")
        found.append(
            ScoreShift(
                detector=name,
                n_reference=len(reference),
                n=len(here),
                psi=psi(reference, here),
                ks=float(test.statistic),
                ks_p_value=float(test.pvalue),
            )
        )
    return found


def psi(reference: Float64, here: Float64) -> float:
    """
    Population stability index over the deciles of *reference*.

    Each part has half a request more, so that none is infinite.

    >>> psi(np.arange(100.0), np.arange(100.0))
    0.0
    """
    ranks = np.sort(reference)[(np.arange(1, _N_PARTS) * len(reference)) // _N_PARTS]
    edges, n_equal = np.unique(ranks, return_counts=True)
    # What many requests share (a detector that is silent) is a part of its own.
    below = np.nextafter(edges[n_equal > 1], -np.inf)
    cuts = np.unique(np.concatenate([edges, below]))
    counts = [
        np.bincount(np.searchsorted(cuts, x, side="left"), minlength=len(cuts) + 1)
        for x in (reference, here)
    ]
    return _psi_of_counts(*counts)


def _psi_of_counts(reference: Int64, here: Int64) -> float:
    p, q = (
        (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
        for counts in (reference, here)
    )
    return float(((q - p) * np.log(q / p)).sum())


def firing_shifts(
    bundle: Bundle,
    reference: tuple[Dataset, Sequence[int]],
    here: tuple[Dataset, Sequence[int]],
    progress: Progress | None = None,
) -> list[FiringShift]:
    """
    Firing rates of every watched feature, in benign requests of two data sets.

    Args:
        bundle: Its detectors that watch SAE features are looked at.

        reference: A data set, and which of its requests.

        here: Another, and which of its.

        progress: Called with requests done and requests in all.
    """
    watching = [d for d in bundle.detectors if isinstance(d, _WATCHING)]
    if not watching:
        return []
    total, n_done = len(reference[1]) + len(here[1]), 0
    counted: list[tuple[int, list[Int64]]] = []
    for dataset, indices in (reference, here):
        n_tokens, n_on = 0, [np.zeros(len(features_of(d)), np.int64) for d in watching]
        for group in groups_of(dataset, indices):
            more, found = _count_on(watching, dataset, group)
            n_tokens += more
            n_on = [a + b for a, b in zip(n_on, found, strict=True)]
            n_done += len(group)
            if progress is not None:
                progress(n_done, total)
        counted.append((n_tokens, n_on))
    (n_before, on_before), (n_now, on_now) = counted
    return [
        FiringShift(
            detector=detector.name,
            feature=feature,
            reference=(a := _fired(before, n_before)),
            here=(b := _fired(now, n_now)),
            ks=abs(a.share - b.share),
            psi=_psi_of_counts(
                np.array([before, n_before - before]), np.array([now, n_now - now])
            ),
        )
        for detector, befores, nows in zip(watching, on_before, on_now, strict=True)
        for feature, before, now in zip(
            features_of(detector), befores.tolist(), nows.tolist(), strict=True
        )
    ]


def _fired(n: int, of: int) -> Fired:
    return Fired(n=n, of=of, share=n / of if of else 0.0)


_WATCHING = (SAEFeatureDetector, TopKFeatureDetector)


def features_of(detector: SAEFeatureDetector | TopKFeatureDetector) -> list[int]:
    """The watched features, by index in their SAE."""
    features = detector.features
    if isinstance(detector, SAEFeatureDetector):
        features = features[detector.watched]
    return [int(feature) for feature in features]


def _count_on(
    detectors: Sequence[SAEFeatureDetector | TopKFeatureDetector],
    dataset: Dataset,
    group: Sequence[int],
) -> tuple[int, list[Int64]]:
    """Tokens of the requests *group*, and on how many each feature is on."""
    everything: Sequence[Detector] = detectors
    bank = ProjectionBank.compile(everything)
    whole = {h: read_requests(dataset, h, group) for h in bank.hook_points}
    columns, norms = bank.project(whole)
    found = []
    for detector in detectors:
        if isinstance(detector, SAEFeatureDetector):
            own = bank.columns_of(detector.name, columns, norms)
            features = detector.features_on(own)
        else:
            features = detector.features_on(whole)
        found.append((features != 0).sum(axis=0))
    return sum(dataset.requests[i].n_rows for i in group), found
