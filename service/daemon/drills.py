"""Drills: test flags on their way, and where they have arrived."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

_MOST = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """A test flag; *planted_at* is seconds since the epoch, in whole milliseconds."""

    drill_id: str
    planted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a sink made of a drill, and when; *problem* is empty where it arrived."""

    sink: str
    at: float
    problem: str


class Drills:
    """The last ones. Any thread may ask and note."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deliveries: OrderedDict[str, list[Delivery]] = OrderedDict()

    def begin(self, drill: Drill) -> None:
        """Remember *drill*; the oldest is forgotten."""
        with self._lock:
            self._deliveries[drill.drill_id] = []
            if len(self._deliveries) > _MOST:
                self._deliveries.popitem(last=False)

    def note(self, drill_id: str, delivery: Delivery) -> None:
        """Remember what a sink made of it."""
        with self._lock:
            if drill_id in self._deliveries:
                self._deliveries[drill_id].append(delivery)

    def find(self, drill_id: str) -> list[Delivery] | None:
        """Return what is known of it, or None of one that is forgotten."""
        with self._lock:
            found = self._deliveries.get(drill_id)
            return None if found is None else list(found)
