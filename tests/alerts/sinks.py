"""A record with flags in it, and a sink that follows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from monitor.records import Flag
from service.daemon.audit.records import Entries
from service.daemon.audit.store import AuditStore
from service.daemon.drills import Drills
from service.daemon.sinks.follower import FollowerSink, Receiver, SinkLimits
from service.daemon.sinks.metrics import SinkMetrics

LIMITS = SinkLimits(queue_flags=1000, give_up_seconds=3600.0)


def flag(request_id: str, detector: str = "max", score: float = 3.5) -> Flag:
    """A flag as a detector raises it."""
    return Flag(
        engine="engine-1",
        request_id=request_id,
        detector=detector,
        score=score,
        threshold=2.0,
        position=7,
        bank_digest="bank",
        scores=np.zeros(8, np.float32),
        token_ids=np.arange(8, dtype=np.int32),
        adapter="lora",
        bundle_digest="bundle",
    )


@dataclass
class Record:
    """A record in *folder*, and the sinks that follow it."""

    folder: Path
    drills: Drills = field(default_factory=Drills)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.store = AuditStore.open(self.folder, model="tiny", bundle_digest="bundle")
        self.store.begin(1.0)
        self._metrics = SinkMetrics(self.registry)

    def add(self, *request_ids: str, now: float = 2.0) -> None:
        """Record a flag of each request."""
        self.store.write(Entries(flags=[flag(r) for r in request_ids]), now)

    def sink(
        self, receiver: Receiver, limits: SinkLimits = LIMITS, name: str = "webhook"
    ) -> FollowerSink:
        """A sink that is not started."""
        return FollowerSink(
            name, receiver, self.folder, limits, self._metrics, self.drills
        )

    def value(self, name: str, **labels: str) -> float:
        """Return a metric of the sink webhook."""
        labels = {"sink": "webhook"} | labels
        found = self.registry.get_sample_value(f"innerwatch_sink_{name}", labels)
        assert found is not None, (name, labels)
        return found


@contextmanager
def record(folder: Path) -> Iterator[Record]:
    """A record that is closed at the end."""
    made = Record(folder)
    try:
        yield made
    finally:
        made.store.close()


@contextmanager
def running(sink: FollowerSink) -> Iterator[FollowerSink]:
    """Start *sink*, and end it."""
    sink.start()
    try:
        yield sink
    finally:
        sink.end()
        assert sink.join(10.0)
