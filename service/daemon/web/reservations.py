"""Which flag of the review queue is being looked at by whom."""

import threading
import time
from collections.abc import Callable, Iterable


class Reservations:
    """
    Keeps two reviewers from labelling the same flag at the same time.

    In memory: after a restart of the daemon every flag is free. Any thread may call.
    """

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[int, tuple[str, float]] = {}

    def take_first(self, flag_ids: Iterable[int], reviewer: str) -> int | None:
        """Reserve the first of *flag_ids* that nobody else holds, or return None."""
        with self._lock:
            for flag_id in flag_ids:
                if self._holder(flag_id) in ("", reviewer):
                    self._held[flag_id] = (reviewer, self._clock() + self._seconds)
                    return flag_id
        return None

    def holders(self) -> dict[int, str]:
        """Return who holds what now."""
        with self._lock:
            return {
                flag_id: holder
                for flag_id in list(self._held)
                if (holder := self._holder(flag_id))
            }

    def release(self, reviewer: str) -> None:
        """Let go of all that *reviewer* holds."""
        with self._lock:
            self._held = {f: h for f, h in self._held.items() if h[0] != reviewer}

    def _holder(self, flag_id: int) -> str:
        holder, until = self._held.get(flag_id, ("", 0.0))
        if holder and self._clock() >= until:
            del self._held[flag_id]
            return ""
        return holder
