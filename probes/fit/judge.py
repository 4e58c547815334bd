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

    Those longer than all that the calibration rests on are flagged by nobody, and
    those that a gate turns away neither.
    """
    everyone = np.arange(len(requests.n_tokens))
    some = requests.at(calibration.longest, everyone)
    peaks = some.peaks(calibration.centre, calibration.scale)
    bins = some.bins
    is_covered = bins < calibration.n_bins
    level = calibration.final_level[np.minimum(bins, calibration.n_bins - 1)]
    crossed = (peaks > level) & is_covered[:, None]
    is_gate = ~calibration.flagging
    is_unlike = crossed[:, is_gate].any(axis=1)
    is_answered = is_covered & ~is_unlike
    p_values = np.full(len(peaks), np.nan)
    for i in np.flatnonzero(is_answered):
        p_values[i] = calibration.request_p_value(peaks[i], int(bins[i]))
    return Judged(
        bins=bins,
        peaks=peaks,
        is_flagged=crossed & ~is_gate & is_answered[:, None],
        is_unlike=is_unlike,
        p_values=p_values,
    )
