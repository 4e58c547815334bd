"""Coverage of the last stretch of traffic, however long ago that was."""

from collections import deque

from monitor.coverage import Coverage
from monitor.records import LossReason


class RecentCoverage:
    """
    What was scored and lost within the last seconds in which there were tokens.

    While no tokens come the last answer stands: an idle engine whose last tokens
    were all lost does not see again by being idle.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._samples: deque[tuple[float, int, dict[LossReason, int]]] = deque()
        self.n_scored = 0
        self.n_lost: dict[LossReason, int] = {}

    def sample(self, now: float, totals: Coverage) -> None:
        """Take in the counters *totals* at the time *now*."""
        while self._samples and self._samples[0][0] < now - self._window_seconds:
            # The newest sample before the window is its baseline.
            if len(self._samples) > 1 and (
                self._samples[1][0] >= now - self._window_seconds
            ):
                break
            self._samples.popleft()
        self._samples.append((now, totals.n_scored, dict(totals.n_lost)))
        _, n_scored, n_lost = self._samples[0]
        lost = {r: n - n_lost[r] for r, n in totals.n_lost.items() if n > n_lost[r]}
        if totals.n_scored > n_scored or lost:
            self.n_scored = totals.n_scored - n_scored
            self.n_lost = lost
