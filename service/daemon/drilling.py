"""Plants test flags: through queue, record and sinks, past every statistic."""

import secrets
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from service.daemon.drills import Delivery, Drill
from service.daemon.ingest import Ingest
from service.daemon.items import DrillItem
from service.daemon.sinks.sinks import Sinks

_REPLY_SECONDS = 60.0
"""For what is queued before a drill to be scored and stored."""

_LOOK_SECONDS = 0.25


class Drilling:
    """
    For any thread.

    Attributes:
        metrics_url: Where a drill shows.

        sinks: Names of the sinks that a drill goes to.
    """

    def __init__(self, ingest: Ingest, sinks: Sinks, metrics_url: str) -> None:
        self._ingest = ingest
        self._drills = sinks.drills
        self.sinks = sinks.names
        self.metrics_url = metrics_url

    def plant(self) -> tuple[Drill, float] | None:
        """
        Plant a drill; return it and when it was durable, in seconds since the epoch.

        Returns:
            None if the daemon stops, or what is queued before it takes a minute.
        """
        # Milliseconds: Prometheus shows them as they are, and a drill is known by them.
        drill = Drill(drill_id=secrets.token_hex(8), planted_at=round(time.time(), 3))
        reply: SimpleQueue[float] = SimpleQueue()
        if not self._ingest.put(DrillItem(drill=drill, reply=reply)):
            return None
        deadline = time.monotonic() + _REPLY_SECONDS
        while not self._ingest.is_over and time.monotonic() < deadline:
            with suppress(Empty):
                return drill, reply.get(timeout=_LOOK_SECONDS)
        return None

    def deliveries(self, drill_id: str) -> list[Delivery] | None:
        """Return what the sinks made of it so far; None if it is not known."""
        return self._drills.find(drill_id)
