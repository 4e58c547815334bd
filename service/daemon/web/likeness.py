"""How a request's detectors compare with benign requests of its length."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import numpy as np

from service.daemon.audit.rows import SummaryRow
from service.daemon.loaded_set import LoadedSet

N_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorView:
    """
    What one detector said of a finished request.

    Attributes:
        margin: Above the boundary, in the detector's units; None before any token.

        n_higher: Benign calibration requests of its length that were as high, or
            higher; None where the calibration is not at hand.

        n_benign: All of them.

        neighbours: Those nearest to it, as margins in the same units, falling.
    """

    detector: str
    statistic: float | None
    margin: float | None
    is_flagged: bool
    n_higher: int | None = None
    n_benign: int = 0
    neighbours: tuple[float, ...] = ()


def detector_views(summary: SummaryRow, one: LoadedSet | None) -> list[DetectorView]:
    """Return what every detector said, the highest above its boundary first."""
    views = [_view(name, summary, one) for name in summary.statistics]
    return sorted(views, key=_contribution, reverse=True)


def _view(name: str, summary: SummaryRow, one: LoadedSet | None) -> DetectorView:
    statistic, margin = summary.statistics[name], summary.margins.get(name)
    view = DetectorView(
        detector=name,
        statistic=statistic,
        margin=margin,
        is_flagged=name in summary.flagged_by,
    )
    if one is None or margin is None or name not in one.bundle.calibration.detectors:
        return view
    calibration = one.bundle.calibration
    n_tokens = summary.n_tokens_scored + summary.n_tokens_shadowed
    bin_index = int(calibration.bins_of(np.array([n_tokens]))[0])
    if bin_index >= calibration.n_bins or not len(calibration.reference):
        return view
    column = calibration.detectors.index(name)
    start, stop = calibration.reference_offsets[bin_index : bin_index + 2].tolist()
    peaks = calibration.reference[start:stop, column]
    level = calibration.final_level[bin_index, column]
    # As margins: heights above the level, in the detector's own units.
    benign = (peaks - level) * calibration.scale[bin_index, column]
    nearest = benign[np.argsort(np.abs(benign - margin), kind="stable")[:N_NEIGHBOURS]]
    return DetectorView(
        detector=name,
        statistic=statistic,
        margin=margin,
        is_flagged=view.is_flagged,
        n_higher=int((benign >= margin).sum()),
        n_benign=len(benign),
        neighbours=tuple(sorted(_finite(nearest.tolist()), reverse=True)),
    )


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if isfinite(value)]


def _contribution(view: DetectorView) -> float:
    return -np.inf if view.margin is None else view.margin
