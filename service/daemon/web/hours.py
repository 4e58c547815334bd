# An hour that is over does not change any more, so it is counted once. What is left to
# count for a page is the hour that runs.
"""What happened in each of the last hours."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service.daemon.audit.pages import PageReader, RequestCounts

HOUR = 3600.0
N_HOURS = 24

# A flag is written with the time at which its transaction began.
_SETTLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """
    One hour's flags and requests.

    Attributes:
        began_at: Seconds since the epoch, a whole hour.

        n_flags: By detector; those without one are absent.
    """

    began_at: float
    requests: RequestCounts
    n_flags: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Flags of all detectors."""
        return sum(self.n_flags.values())


class Hours:
    """Counts hours of the record. Any thread may call."""

    def __init__(
        self, reader: PageReader, clock: Callable[[], float] = time.time
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._lock = threading.Lock()
        self._settled: dict[float, Hour] = {}

    def last(self) -> list[Hour]:
        """Return the last `N_HOURS` hours, the one that runs being the last."""
        now = self._clock()
        first = now // HOUR * HOUR - (N_HOURS - 1) * HOUR
        return [self._hour(first + i * HOUR, now) for i in range(N_HOURS)]

    def warm(self) -> None:
        """Count all that is over, so that no page has to wait for it."""
        self.last()

    def _hour(self, began_at: float, now: float) -> Hour:
        with self._lock:
            if found := self._settled.get(began_at):
                return found
        hour = self._count(began_at)
        if now >= began_at + HOUR + _SETTLED_SECONDS:
            with self._lock:
                oldest = now - (N_HOURS + 1) * HOUR
                self._settled = {t: h for t, h in self._settled.items() if t > oldest}
                self._settled[began_at] = hour
        return hour

    def _count(self, began_at: float) -> Hour:
        until = began_at + HOUR
        flags = self._reader.flags_over_time(since=began_at, until=until, n_bins=1)
        return Hour(
            began_at=began_at,
            requests=self._reader.request_counts(began_at, until),
            n_flags={name: counts[0] for name, counts in flags.items()},
        )
