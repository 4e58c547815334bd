"""What a calibration says of a data set's requests, as the monitor would."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64, Int64
from probes.calibration import Calibration
from probes.fit.trajectories import Trajectories


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """
    The judgement of each request.

    Attributes:
        bins: The length bin that it ends in; `n_bins` beyond the last, (n_requests,).

        peaks: How high it stood, (n_requests, n_detectors).

        is_flagged: By detector, (n_requests, n_detectors).

        is_unlike: Whether a gate turned it away, (n_requests,).

        p_values: Of the whole set, (n_requests,); NaN where there is no answer.
    """

    bins: Int64
    peaks: Float64
    is_flagged: NDArray[np.bool_]
    is_unlike: NDArray[np.bool_]
    p_values: Float64


def judge(requests: Trajectories, calibration: Calibration) -> Judged:
    """
    Judge ended *requests*, scored by the detectors of *calibration*.

    Those longer than all that the calibration rests on are flagged by nobody at their
    end, and those that a gate turns away neither; a flag that was raised on the way,
    before that was known, stays.
    """
    everyone = np.arange(len(requests.n_tokens))
    some = requests.at(calibration.longest, everyone)
    peaks = some.peaks(calibration.centre, calibration.scale)
    bins, is_gate = some.bins, ~calibration.flagging
    is_covered = bins < calibration.n_bins
    flagged_before, is_unlike = _on_the_way(some, calibration)
    level = calibration.final_level[np.minimum(bins, calibration.n_bins - 1)]
    crossed = (peaks > level) & is_covered[:, None]
    is_unlike |= crossed[:, is_gate].any(axis=1)
    is_answered = is_covered & ~is_unlike
    p_values = np.full(len(peaks), np.nan)
    for i in np.flatnonzero(is_answered):
        p_values[i] = calibration.request_p_value(peaks[i], int(bins[i]))
    return Judged(
        bins=bins,
        peaks=peaks,
        is_flagged=flagged_before | (crossed & ~is_gate & is_answered[:, None]),
        is_unlike=is_unlike,
        p_values=p_values,
    )


def _on_the_way(
    requests: Trajectories, calibration: Calibration
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What was flagged, and turned away, by running levels: before a request ended."""
    heights = (requests.statistics - calibration.centre) / calibration.scale
    is_reached = np.arange(calibration.n_bins) <= requests.bins[:, None]
    heights[~is_reached] = -np.inf
    peaks = np.maximum.accumulate(heights, axis=1)
    crossed = (peaks > calibration.running_level) & requests.is_monotone
    crossed &= is_reached[:, :, None]
    is_gate = ~calibration.flagging
    turned_away = crossed[:, :, is_gate].any(axis=2)
    is_unlike: NDArray[np.bool_] = np.logical_or.accumulate(turned_away, axis=1)
    is_flagged = crossed & ~is_gate & ~is_unlike[:, :, None]
    return np.asarray(is_flagged.any(axis=1)), is_unlike[:, -1]
