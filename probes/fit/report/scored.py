"""The requests of a data set, scored and judged, by kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64
from probes.bundle import Bundle
from probes.dataset import Dataset
from probes.fit.intervals import clopper_pearson
from probes.fit.judge import Judged, judge
from probes.fit.trajectories import trajectories

ALL_DETECTORS = "all detectors"
"""The set as a whole; no detector's name, since those have no spaces."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """
    How many of how many, and what that says of the rate.

    Attributes:
        n: So many ...

        of: ... of so many.

        share: The one over the other; None of none.

        low: Lower end of the 95 % interval (Clopper and Pearson 1934).

        high: Its upper end.
    """

    n: int
    of: int
    share: float | None
    low: float
    high: float

    @classmethod
    def counted(cls, is_one: NDArray[np.bool_]) -> "Share":
        """Of as many as *is_one* (n,) has, those where it is true."""
        return cls.of_counts(int(is_one.sum()), len(is_one))

    @classmethod
    def of_counts(cls, n: int, of: int) -> "Share":
        """*n* of *of*."""
        low, high = clopper_pearson(n, of)
        return cls(n=n, of=of, share=n / of if of else None, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """
    The requests of a data set that have rows, as the monitor would judge them.

    Attributes:
        indices: Which requests of the data set, (n_requests,).

        kinds: The value of the label of each, as text, (n_requests,).

        benign: The kind that must not be flagged.

        n_tokens: Length of each, (n_requests,).

        margins: float64 (n_requests, 1 + n_detectors): how far above the boundary for
            its length each stood at its end, in the calibration's units; above 0 is
            flagged. The first column is the set's, the highest of those that flag.
            -inf where a detector counted no token, NaN where there is no answer.

        judged: The judgements.

        n_bins: Of the calibration.
    """

    indices: NDArray[np.int64]
    kinds: NDArray[np.str_]
    benign: str
    n_tokens: NDArray[np.int64]
    margins: Float64
    judged: Judged
    n_bins: int

    @property
    def other_kinds(self) -> list[str]:
        """All kinds but the benign one, in alphabetical order."""
        return sorted({str(kind) for kind in self.kinds} - {self.benign})

    @property
    def is_promised(self) -> NDArray[np.bool_]:
        """Benign requests that are not too long, a gate's included, (n_requests,)."""
        is_covered = self.judged.bins < self.n_bins
        return np.asarray((self.kinds == self.benign) & is_covered)

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Whether a request is neither too long nor turned away, (n_requests,)."""
        return np.asarray(~np.isnan(self.margins[:, 0]))

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """Answered requests of one kind, (n_requests,)."""
        return np.asarray((self.kinds == kind) & self.is_answered)


def column_names(bundle: Bundle) -> list[str]:
    """What the columns of `Scored.margins` are of."""
    return [ALL_DETECTORS, *(detector.name for detector in bundle.detectors)]


def score_requests(
    bundle: Bundle,
    dataset: Dataset,
    label: str,
    benign: str,
    progress: Progress | None = None,
) -> Scored:
    """
    Score and judge the requests of *dataset* that carry *label*.

    Raises:
        ValueError: None does, or none has the value *benign*.
    """
    labelled = labelled_requests(dataset, label, benign)
    found = trajectories(dataset, bundle.detectors, labelled, progress)
    scored = [i for i in labelled if dataset.requests[i].n_rows]
    judged = judge(found, bundle.calibration)
    return Scored(
        indices=np.array(scored, dtype=np.int64),
        kinds=np.array([kind_of(dataset, i, label) for i in scored]),
        benign=benign,
        n_tokens=found.n_tokens,
        margins=_margins(bundle, judged),
        judged=judged,
        n_bins=bundle.calibration.n_bins,
    )


def labelled_requests(dataset: Dataset, label: str, benign: str) -> Sequence[int]:
    """
    Indices of the requests that carry *label*.

    Raises:
        ValueError: None does, or none has the value *benign*.
    """
    labelled = [i for i, r in enumerate(dataset.requests) if label in r.labels]
    kinds = sorted({kind_of(dataset, i, label) for i in labelled})
    if not kinds:
        known = sorted({key for r in dataset.requests for key in r.labels})
        raise ValueError(
            f"{dataset.path}: label: expected one of {known}, got {label!r}"
        )
    if benign not in kinds:
        raise ValueError(
            f"{dataset.path}: benign: expected a value of {label!r}, one of {kinds}, "
            f"got {benign!r}"
        )
    return labelled


def kind_of(dataset: Dataset, index: int, label: str) -> str:
    """The value of *label* as text: true is ``true``, as in the JSON."""
    value = dataset.requests[index].labels[label]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _margins(bundle: Bundle, judged: Judged) -> Float64:
    calibration = bundle.calibration
    last = calibration.n_bins - 1
    each = judged.peaks - calibration.final_level[np.minimum(judged.bins, last)]
    highest = each[:, calibration.flagging].max(axis=1)
    margins = np.column_stack([highest, each])
    margins[(judged.bins > last) | judged.is_unlike] = np.nan
    return margins
