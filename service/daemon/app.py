"""Starts the daemon's parts in order, waits, and stops them."""

# The order is the order of dependence: a step may use what the steps above it
# made. Teardown runs every step, whatever the others raised. SIGKILL at any moment
# must lose nothing that was acknowledged, so teardown is a courtesy.

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata

from prometheus_client import CollectorRegistry, disable_created_metrics

from monitor.core import Monitor
from service.address import parse_address
from service.config import Config, flat
from service.daemon.audit.opening import FILE_NAME
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.store import AuditStore, StoreSettings
from service.daemon.audit_metrics import AuditMetrics, DiskMetrics
from service.daemon.audit_rpc import AuditRPC
from service.daemon.canaries import Canaries, CanaryServer
from service.daemon.capture_rpc import CaptureRPC
from service.daemon.drilling import Drilling
from service.daemon.exporter import Exporter
from service.daemon.ingest import Ingest
from service.daemon.loaded_set import LoadedSet
from service.daemon.metrics import Metrics
from service.daemon.operator_rpc import ControlRPC
from service.daemon.restoring import Restored, restore
from service.daemon.rings import Rings
from service.daemon.server import Server
from service.daemon.sinks.configured import sinks_of
from service.daemon.sinks.sinks import Sinks
from service.daemon.state import State
from service.daemon.swaps import Swaps
from service.daemon.upkeep import Upkeep
from service.daemon.web_page import WebPage, open_web
from service.ring.handover import socket_path

_WAKE_SECONDS = 0.5
_STREAM_GRACE_SECONDS = 0.5  # All acknowledgements are out before this begins.

log = logging.getLogger("innerwatch")


class Daemon:
    """
    One run, from a configuration to an exit status.

    Every step of `STARTUP` may raise `ConfigError`, `ArtifactError`, `AuditError`
    or `ListenError`: the operator's to mend, and nothing is left running.
    """

    configured: LoadedSet
    restored: Restored
    swaps: Swaps
    store: AuditStore
    registry: CollectorRegistry
    metrics: Metrics
    exporter: Exporter
    ingest: Ingest
    server: Server
    sinks: Sinks
    audit_metrics: AuditMetrics
    canaries: Canaries
    upkeep: Upkeep
    rings: Rings | None
    web: WebPage | None

    def __init__(self, config: Config) -> None:
        self.config = config
        self._is_over = threading.Event()

    def start(self) -> None:
        """Run every step of `STARTUP`; on an error, undo those that were run."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._is_over.set())
        undo = {
            Daemon.open_audit: Daemon.close_audit,
            Daemon.open_metrics: Daemon.stop_metrics,
            Daemon.start_sinks: Daemon.stop_sinks,
            Daemon.start_ingest: Daemon.drain_ingest,
            Daemon.open_server: Daemon.stop_server,
            Daemon.open_web: Daemon.stop_web,
        }
        with ExitStack() as done:
            for step in STARTUP:
                step(self)
                if step in undo:
                    done.callback(undo[step], self)
            done.pop_all()

    def wait(self) -> int:
        """Wait for SIGTERM, SIGINT or a failure; return the exit status."""
        # Python runs a handler between two steps of this thread's own: a signal that
        # comes just before a wait without an end would be slept over.
        while not self._is_over.wait(_WAKE_SECONDS):
            pass
        failure = self.ingest.failure
        with ExitStack() as steps:
            for step in reversed(TEARDOWN):
                steps.callback(step, self)
        if failure:
            log.error("stopped: %s", failure)
            return 1
        return 0

    def load_detectors(self) -> None:
        self.configured = LoadedSet.read(
            self.config.bundle_path.resolve(), digest=self.config.bundle_digest
        )
        directory = self.config.audit_path
        is_new = not (directory / FILE_NAME).exists()
        self.restored = restore(directory, self.configured, is_new=is_new)

    def open_audit(self) -> None:
        os.umask(0o077)  # The record and the socket are their owner's.
        self.store = AuditStore.open(
            self.config.audit_path,
            model=self.restored.live.bundle.identity.model,
            bundle_digest=self.restored.live.digest,
            settings=StoreSettings.of(self.config),
        )

    def open_metrics(self) -> None:
        disable_created_metrics()  # Two series for each counter, for nobody.
        self.registry = CollectorRegistry()
        live = self.restored.live
        self.metrics = Metrics(
            self.registry,
            live,
            version=version(),
            queue_batches=self.config.ingest.queue_batches,
        )
        DiskMetrics(self.registry, self.config.audit_path)
        self.audit_metrics = AuditMetrics(self.registry)
        self.exporter = Exporter(
            self.config.metrics.host,
            self.config.metrics.port,
            self.registry,
            self._health,
        )

    def make_sinks(self) -> None:
        self.sinks = sinks_of(self.config, self.registry, version=version())

    def start_sinks(self) -> None:
        self.sinks.start()

    def stop_sinks(self) -> None:
        if not self.sinks.stop(self.config.daemon.shutdown_seconds):
            log.warning("stopped in a delivery: it is made again")

    def make_ingest(self) -> None:
        limits = self.config.ingest
        live = self.restored.live
        monitor = Monitor(
            live.bank,
            live.bundle.detectors,
            live.bundle.calibration,
            bundle_digest=live.digest,
            max_live_requests=limits.max_live_requests,
            max_positions=limits.max_positions,
            max_history_bytes=limits.history_mib << 20,
            max_shadow_bytes=limits.shadow_mib << 20,
            shadow_seed=secrets.randbits(64),
            discovery_rate=self.config.detectors.discovery_rate or None,
        )
        self.swaps = Swaps(monitor, self.restored)
        self.ingest = Ingest(
            monitor=monitor,
            swaps=self.swaps,
            store=self.store,
            metrics=self.metrics,
            sinks=self.sinks,
            config=limits,
            directory=self.config.audit_path,
            on_state=self._on_state,
            on_exit=self._is_over.set,
        )

    def open_server(self) -> None:
        address = parse_address(self.config.daemon.listen)
        capture = CaptureRPC(self.swaps, self.ingest)
        self.server = Server(
            address,
            capture,
            ControlRPC(
                self.ingest,
                self.canaries,
                Drilling(self.ingest, self.sinks, self.exporter.url),
            ),
            AuditRPC(AuditReader(self.config.audit_path), self.ingest),
        )
        # Behind the server's: who holds its socket holds the rings' too.
        self.rings = (
            None
            if address.path is None
            else Rings(
                socket_path(address.path),
                capture,
                self.registry,
                ring_bytes=self.config.ingest.ring_mib << 20,
            )
        )

    def make_canaries(self) -> None:
        wanted = self.config.canary
        server = CanaryServer(
            url=wanted.server,
            model=wanted.model,
            api_key=self.config.canary_key(),
            timeout_seconds=wanted.timeout_seconds,
        )
        self.canaries = Canaries(
            self.ingest, server if wanted.server else None, wanted.interval_seconds
        )

    def start_canaries(self) -> None:
        self.canaries.start()

    def stop_canaries(self) -> None:
        self.canaries.stop()

    def begin_record(self) -> None:
        # Not before every port is ours: a start that failed was no start.
        for problem in self.restored.problems:
            log.warning("detector sets of before: %s", problem)
        gap = self.store.begin(time.time(), self.restored.problems, flat(self.config))
        if gap is not None:
            self.metrics.count_gap(gap.reason)
            seconds = gap.ended_at - gap.began_at
            log.warning(
                "the last run did not stop: nothing was seen for %.0f s", seconds
            )

    def start_ingest(self) -> None:
        self.ingest.start()

    def start_upkeep(self) -> None:
        self.upkeep = Upkeep(
            self.ingest,
            self.store,
            self.config.audit_path,
            self.config.audit,
            on_verified=lambda found: self.audit_metrics.set_verified(found.is_intact),
        )
        self.upkeep.start()

    def stop_upkeep(self) -> None:
        self.upkeep.stop()

    def start_exporter(self) -> None:
        self.exporter.start()

    def open_web(self) -> None:
        self.web = open_web(self.config, self.ingest, self.swaps)

    def start_web(self) -> None:
        if self.web is not None:
            self.web.start()
            log.info("audit page: %s", self.web.url)

    def stop_web(self) -> None:
        if self.web is not None:
            self.web.close()

    def start_server(self) -> None:
        if self.rings is not None:
            self.rings.start()
        self.server.start()
        log.info("ready: %s, %s", self._listening(), self.exporter.url)

    def drain_ingest(self) -> None:
        if not self.ingest.stop(self.config.daemon.shutdown_seconds):
            log.warning("stopped before everything received was scored")

    def stop_server(self) -> None:
        if self.rings is not None:
            self.rings.stop()
        self.server.stop(_STREAM_GRACE_SECONDS)

    def close_audit(self) -> None:
        self.store.close()

    def stop_metrics(self) -> None:
        self.exporter.close()

    def _listening(self) -> str:
        address = parse_address(self.config.daemon.listen)
        return address.target if address.path else f"{address.host}:{self.server.port}"

    def _health(self) -> str:
        state = self.ingest.snapshot.state
        return f"{state.name.value}: {state.reason}"

    def _on_state(self, state: State) -> None:
        self.server.set_state(state)
        self.audit_metrics.set_log(self.store.log_facts)


STARTUP: tuple[Callable[[Daemon], None], ...] = (
    Daemon.load_detectors,
    Daemon.open_audit,
    Daemon.open_metrics,
    Daemon.make_sinks,
    Daemon.make_ingest,
    Daemon.make_canaries,
    Daemon.open_server,
    Daemon.open_web,
    Daemon.begin_record,
    Daemon.start_sinks,
    Daemon.start_ingest,
    Daemon.start_exporter,
    Daemon.start_web,
    Daemon.start_server,
    Daemon.start_canaries,
    Daemon.start_upkeep,
)

TEARDOWN: tuple[Callable[[Daemon], None], ...] = (
    Daemon.stop_upkeep,
    Daemon.stop_canaries,
    Daemon.stop_web,
    Daemon.drain_ingest,
    Daemon.stop_server,
    Daemon.stop_sinks,
    Daemon.close_audit,
    Daemon.stop_metrics,
)


def version() -> str:
    """Return the installed distribution's version, or "0+unknown" in a checkout."""
    try:
        return metadata.version("innerwatch")
    except metadata.PackageNotFoundError:
        return "0+unknown"
