"""Coverage of the last stretch of traffic, however long ago that was."""

from collections import deque

from monitor.coverage import Coverage
from monitor.records import LossReason


class RecentCoverage:
    """
    What was scored and lost within the last seconds in which there were tokens.

    While no tokens come the last answer narrows down to what came last, and stands: an
    idle engine whose last tokens were all lost does not see again by being idle, nor
    because others were scored shortly before.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        # Of when a counter had risen; the first is the baseline.
        self._samples: deque[tuple[float, int, dict[LossReason, int]]] = deque()
        self.n_scored = 0
        self.n_lost: dict[LossReason, int] = {}

    def sample(self, now: float, totals: Coverage) -> None:
        """Take in the counters *totals* at the time *now*."""
        counters = (totals.n_scored, dict(totals.n_lost))
        if not self._samples or self._samples[-1][1:] != counters:
            self._samples.append((now, *counters))
        # The newest sample before the window is its baseline, and what came last is
        # in the window however old it is.
        while len(self._samples) > 2 and (
            self._samples[1][0] < now - self._window_seconds
        ):
            self._samples.popleft()
        _, n_scored, n_lost = self._samples[0]
        self.n_scored = totals.n_scored - n_scored
        self.n_lost = {
            r: n - n_lost[r] for r, n in totals.n_lost.items() if n > n_lost[r]
        }
