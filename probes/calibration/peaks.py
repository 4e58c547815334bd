"""How high live requests stand above what is usual for their length."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64, Int64
from probes.calibration.lengths import pieces
from probes.calibration.record import Calibration
from probes.detector import Detector
from probes.evidence import Evidence
from probes.running import RunningStatistics


class Peaks:
    """
    One row (slot) a live request: statistics, and their peaks by *calibration*.

    Attributes:
        statistics: float64 (n_slots, n_detectors), of the tokens within the longest
            calibrated length; -inf before any.

        peaks: float64 (n_slots, n_detectors); -inf before any token.

        n_tokens: int64 (n_slots,), tokens seen.
    """

    def __init__(
        self, detectors: Sequence[Detector], calibration: Calibration, n_slots: int = 64
    ) -> None:
        names = tuple(d.name for d in detectors)
        if names != calibration.detectors:
            raise ValueError(
                f"calibration: expected one of {list(names)}, "
                f"got one of {list(calibration.detectors)}"
            )
        self._calibration = calibration
        self._is_gate = ~calibration.flagging
        self._is_monotone = np.array([d.aggregator.is_monotone for d in detectors])
        self._running = RunningStatistics(detectors, n_slots)
        self.statistics: Float64 = np.full((n_slots, len(names)), -np.inf)
        self.peaks: Float64 = self.statistics.copy()
        self.n_tokens: Int64 = np.zeros(n_slots, dtype=np.int64)
        self._peak_statistics = self.statistics.copy()
        self._peak_bins = np.zeros((n_slots, len(names)), dtype=np.int64)
        self._is_unlike = np.zeros(n_slots, dtype=np.bool_)
        self._free = list(reversed(range(n_slots)))

    def take(self) -> int:
        """Return a fresh slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._running.reset(slot)
        for array in (self.statistics, self.peaks, self._peak_statistics):
            array[slot] = -np.inf
        self.n_tokens[slot] = 0
        self._is_unlike[slot] = False
        self._peak_bins[slot] = 0
        return slot

    def give_back(self, slot: int) -> None:
        """Free *slot* for another request."""
        self._free.append(slot)

    def update(
        self,
        slots: Int64,
        evidence: Evidence,
        row_offsets: Int64,
        is_answer: NDArray[np.bool_],
    ) -> None:
        """
        Take in one step; arguments as of `RunningStatistics.update`.

        Tokens beyond the longest calibrated length are counted and not scored.
        """
        n_before = self.n_tokens[slots]
        self.n_tokens[slots] = n_before + np.diff(row_offsets)
        for piece in pieces(n_before, row_offsets, self._calibration.longest):
            some = slots[piece.requests]
            statistics = self._running.update(
                some,
                evidence.rows(piece.rows),
                piece.row_offsets,
                is_answer[piece.rows],
            )
            self.statistics[some] = statistics
            heights = self._calibration.heights(statistics, piece.bins)
            is_new = (heights > self.peaks[some]) | ~self._is_monotone
            # Few are, in most steps.
            which, detectors = np.nonzero(is_new)
            places = some[which], detectors
            self.peaks[places] = heights[is_new]
            self._peak_statistics[places] = statistics[is_new]
            self._peak_bins[places] = piece.bins[which]

    def crossed_running(self, slots: Int64) -> NDArray[np.bool_]:
        """
        Which detectors flag these while they run, (n_requests, n_detectors).

        None of a request that a gate turns away, then or before.
        """
        crossed = (self.peaks[slots] > self._running_levels(slots)) & self._is_monotone
        self._is_unlike[slots] |= crossed[:, self._is_gate].any(axis=1)
        flags: NDArray[np.bool_] = (
            crossed & ~self._is_gate & ~self._is_unlike[slots, None]
        )
        return flags

    def crossed_at_end(self, slot: int) -> NDArray[np.bool_]:
        """
        Which detectors flag a request that has ended, (n_detectors,).

        None of them if it is longer than all that the calibration has seen, or if a
        gate turns it away.
        """
        if self.is_beyond(slot):
            return np.zeros(len(self._is_monotone), dtype=np.bool_)
        level = self._calibration.final_level[self.bin_of(slot)]
        crossed = self.peaks[slot] > level
        self._is_unlike[slot] |= crossed[self._is_gate].any()
        flags: NDArray[np.bool_] = crossed & ~self._is_gate & ~self._is_unlike[slot]
        return flags

    def is_unlike(self, slot: int) -> bool:
        """Whether a gate has turned a request away."""
        return bool(self._is_unlike[slot])

    def is_beyond(self, slot: int) -> bool:
        """Whether a request is longer than all that the calibration has seen."""
        return self.bin_of(slot) == self._calibration.n_bins

    def bin_of(self, slot: int) -> int:
        """The length bin of a request; `n_bins` beyond the last."""
        return int(self._calibration.bins_of(self.n_tokens[slot : slot + 1])[0])

    def margins(self, slot: int) -> Float64:
        """
        How far each detector is above its final boundary, in the detector's units.

        Of shape (n_detectors,). The boundary is that of the last bin where the request
        is beyond it.
        """
        bin_index = min(self.bin_of(slot), self._calibration.n_bins - 1)
        level = self._calibration.final_level[bin_index]
        bins = self._peak_bins[slot]
        scale = self._calibration.scale[bins, np.arange(len(bins))]
        margins: Float64 = (self.peaks[slot] - level) * scale
        return margins

    def crossing(
        self, slot: int, detector: int, *, is_ended: bool
    ) -> tuple[float, float]:
        """The statistic at a detector's peak, and the threshold that it was above."""
        if is_ended:
            level = self._calibration.final_level[self.bin_of(slot), detector]
        else:
            level = self._running_levels(np.array([slot]))[0, detector]
        bin_index = self._peak_bins[slot, detector]
        centre = self._calibration.centre[bin_index, detector]
        scale = self._calibration.scale[bin_index, detector]
        statistic = float(self._peak_statistics[slot, detector])
        # Rounded in another order, the threshold could come out at the statistic.
        below = float(np.nextafter(statistic, -np.inf))
        return statistic, min(float(centre + scale * level), below)

    def _running_levels(self, slots: Int64) -> Float64:
        bins = self._calibration.bins_of(self.n_tokens[slots])
        last = self._calibration.n_bins - 1
        levels: Float64 = self._calibration.running_level[np.minimum(bins, last)]
        return levels

    def _grow(self) -> None:
        n_slots = len(self.peaks)
        self._running.grow(n_slots)
        for name in ("statistics", "peaks", "_peak_statistics"):
            array = getattr(self, name)
            more = np.full_like(array, -np.inf)
            setattr(self, name, np.concatenate([array, more]))
        self._peak_bins = np.concatenate([self._peak_bins, self._peak_bins * 0])
        self.n_tokens = np.concatenate([self.n_tokens, self.n_tokens * 0])
        self._is_unlike = np.concatenate([self._is_unlike, self._is_unlike & False])
        self._free = list(reversed(range(n_slots, 2 * n_slots)))
