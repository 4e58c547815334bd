"""Metrics of the record: its disk, and what makes Prometheus a witness of its log."""

import os
from math import nan
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from service.daemon.audit.log import LogFacts


class DiskMetrics:
    """The file system that holds the record, looked at when it is scraped."""

    def __init__(self, registry: CollectorRegistry, directory: Path) -> None:
        def gauge(name: str, text: str, which: str) -> None:
            made = Gauge(f"innerwatch_audit_disk_{name}", text, registry=registry)
            made.set_function(lambda: _bytes_of(directory, which))

        gauge("free_bytes", "Left for the record; NaN: it is gone.", "f_bavail")
        gauge("size_bytes", "Of the record's file system.", "f_blocks")


class AuditMetrics:
    """
    What the record says of its own log. Each is exported once it is known.

    A rollback of the whole store contradicts what Prometheus has scraped before.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}

    def set_log(self, facts: LogFacts) -> None:
        """Show the log at its last checkpoint: its size only ever rises."""
        self._set("log_entries", "Entries of the record's log.", facts.size)
        self._set(
            "log_root_prefix",
            "First 48 bits of its root, as a number.",
            facts.root_prefix,
        )
        self._set(
            "checkpoint_timestamp_seconds", "When it was last signed.", facts.signed_at
        )

    def set_verified(self, is_intact: bool) -> None:
        """Show what the last verification of the record found."""
        self._set("verified", "1: the last look found it intact; 0: not.", is_intact)

    def _set(self, name: str, text: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(
                f"innerwatch_audit_{name}", text, registry=self._registry
            )
        self._gauges[name].set(value)


def _bytes_of(directory: Path, which: str) -> float:
    try:
        found = os.statvfs(directory)
    except OSError:
        return nan
    blocks: int = getattr(found, which)
    return float(blocks * found.f_frsize)
