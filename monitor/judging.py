"""What a request's end says: p-value, discovery, drift, or no answer at all."""

from dataclasses import dataclass
from math import isnan, nan

import numpy as np

from monitor.records import Abstention
from probes.arrays import Float64
from probes.calibration import Calibration, DriftTest, ELond, Peaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """As in `monitor.records.RequestSummary`."""

    p_value: float = nan
    is_discovery: bool = False
    abstention: Abstention | None = None


class Judge:
    """
    Judges requests that have ended, one after the other.

    Attributes:
        drift: A test of each detector's p-values against the calibration.
    """

    def __init__(
        self, calibration: Calibration, peaks: Peaks, discovery_rate: float | None
    ) -> None:
        self._calibration = calibration
        self._peaks = peaks
        self._discoveries = ELond(discovery_rate) if discovery_rate else None
        self.drift = DriftTest(calibration)

    def judge(self, slot: int, *, is_whole: bool) -> Judgement:
        """
        Judge the request in *slot*, of which some tokens were scored.

        One of which parts are missing is unlike benign ones for another reason than
        the traffic, and is no evidence of drift.
        """
        if self._peaks.is_beyond(slot):
            return Judgement(abstention=Abstention.TOO_LONG)
        if is_whole:
            self.drift.observe(self._heights(slot), self._peaks.bin_of(slot))
        if self._peaks.is_unlike(slot):
            return Judgement(abstention=Abstention.UNLIKE_CALIBRATION)
        p_value = self._calibration.request_p_value(
            self._heights(slot), self._peaks.bin_of(slot)
        )
        if isnan(p_value) or self._discoveries is None:
            return Judgement(p_value=p_value)
        is_discovery = self._discoveries.is_discovery(p_value)
        return Judgement(p_value=p_value, is_discovery=is_discovery)

    def _heights(self, slot: int) -> Float64:
        return np.array(self._peaks.peaks[slot])
