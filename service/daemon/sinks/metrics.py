"""Metrics of the sinks: what was delivered, what failed, what was left out and why."""

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_DELAY_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 5, 60, 3600)


class Failure(StrEnum):
    """Why an attempt did not deliver; it is repeated."""

    CONNECTION = "connection"
    TIMEOUT = "timeout"
    STATUS = "status"
    """The receiver answered that it can not now."""
    ANSWER = "answer"
    """What it answered can not be read."""
    RECORD = "record"
    """The record could not be read, or the cursor not be written."""


class Omission(StrEnum):
    """Why a flag is not delivered, ever. It stays in the record."""

    BACKLOG_FULL = "backlog_full"
    REFUSED = "refused"
    """The receiver answered that it will not."""
    GAVE_UP = "gave_up"


class SinkMetrics:
    """All sinks', by name; for any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(
                f"innerwatch_sink_{name}", text, ("sink", *labels), registry=registry
            )

        self._delivered = counter("delivered", "Flags delivered.")
        self._failures = counter("failures", "Attempts that failed.", "reason")
        self._omitted = counter("omitted", "Flags never delivered.", "reason")
        self._backlog = Gauge(
            "innerwatch_sink_backlog_flags",
            "Flags that wait to be delivered.",
            ("sink",),
            registry=registry,
        )
        self._running = Gauge(
            "innerwatch_sink_running",
            "1 while the sink's thread runs.",
            ("sink",),
            registry=registry,
        )
        self._delay = Histogram(
            "innerwatch_sink_delay_seconds",
            "From recorded to delivered.",
            ("sink",),
            buckets=_DELAY_BUCKETS,
            registry=registry,
        )

    def begin(self, sink: str, is_running: Callable[[], bool]) -> None:
        """Export zeros for *sink*, and whether it runs whenever it is scraped."""
        self._running.labels(sink).set_function(lambda: float(is_running()))
        self._delivered.labels(sink)
        self._backlog.labels(sink)
        self._delay.labels(sink)
        for failure in Failure:
            self._failures.labels(sink, failure.value)
        for omission in Omission:
            self._omitted.labels(sink, omission.value)

    def count_delivered(self, sink: str, delay_seconds: float) -> None:
        """Count a flag that arrived."""
        self._delivered.labels(sink).inc()
        self._delay.labels(sink).observe(max(0.0, delay_seconds))

    def count_failure(self, sink: str, reason: Failure) -> None:
        """Count an attempt."""
        self._failures.labels(sink, reason.value).inc()

    def count_omitted(self, sink: str, reason: Omission, n_flags: int = 1) -> None:
        """Count flags that are left out."""
        self._omitted.labels(sink, reason.value).inc(n_flags)

    def set_backlog(self, sink: str, n_flags: int) -> None:
        """Show how many wait."""
        self._backlog.labels(sink).set(n_flags)
