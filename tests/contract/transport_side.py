"""The daemon's side of both transports in this process, and steps to send to it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import torch
from prometheus_client import CollectorRegistry

from monitor.core import Monitor
from probes.bundle import save_bundle
from service.address import parse_address
from service.capture.outbox import Outbox
from service.capture.requests import RequestFacts
from service.capture.rows import Rows
from service.capture.sender import Sender
from service.capture.settings import Transport
from service.capture.step import Shape, Step
from service.config import IngestConfig
from service.daemon.audit.store import AuditStore
from service.daemon.capture_rpc import CaptureRPC
from service.daemon.drills import Drills
from service.daemon.ingest import Ingest
from service.daemon.items import BatchItem, GapItem, Item, Stop
from service.daemon.loaded_set import LoadedSet
from service.daemon.metrics import Metrics
from service.daemon.restoring import restore
from service.daemon.rings import Rings
from service.daemon.sinks.sinks import Sinks
from service.daemon.swaps import Swaps
from service.ring.handover import socket_path
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc
from tests.monitor.builders import EARLY, LATE, bank
from tests.service.builders import bundle, hello

FULL = pb.LOSS_REASON_BUFFER_FULL
WIDTH = max(bank().n_columns(h) for h in (EARLY, LATE))
N_ROWS = 4


class WatchedIngest(Ingest):
    """An ingest that remembers what it took, and takes it when it is let."""

    items: list[Item]
    gate: threading.Event
    seconds_each: float = 0.0

    def put(self, item: Item) -> bool:
        while not (self.gate.wait(0.05) or isinstance(item, Stop)):
            if self.is_over:
                return False
        time.sleep(self.seconds_each)
        self.items.append(item)
        return super().put(item)


class Side:
    """Everything of the daemon that engines speak to; a context manager."""

    def __init__(self, folder: Path, *, ring_bytes: int = 1 << 20) -> None:
        self.folder = folder
        self.registry = CollectorRegistry()
        if not (folder / "bundle").exists():
            save_bundle(folder / "bundle", bundle())
        live = LoadedSet.read(folder / "bundle", digest=None)
        made = live.bundle
        self._store = AuditStore.open(
            folder / "audit",
            model=made.identity.model,
            bundle_digest=made.digest,
        )
        self._store.begin(time.time())
        monitor = Monitor(
            live.bank, made.detectors, made.calibration, bundle_digest=live.digest
        )
        swaps = Swaps(monitor, restore(folder / "audit", live, is_new=True))
        self.ingest = WatchedIngest(
            monitor=monitor,
            swaps=swaps,
            directory=folder / "audit",
            store=self._store,
            metrics=Metrics(self.registry, live, version="0", queue_batches=8),
            sinks=Sinks((), Drills()),
            config=IngestConfig(),
            on_state=lambda _: None,
            on_exit=lambda: None,
        )
        self.ingest.items, self.ingest.gate = [], threading.Event()
        self.ingest.gate.set()
        capture = CaptureRPC(swaps, self.ingest)
        self._server = grpc.server(ThreadPoolExecutor(8))
        rpc.add_CaptureServicer_to_server(capture, self._server)
        self._server.add_insecure_port(address(folder))
        path = parse_address(address(folder)).path
        assert path is not None
        self.rings = Rings(
            socket_path(path), capture, self.registry, ring_bytes=ring_bytes
        )

    def __enter__(self) -> Self:
        self.ingest.start()
        self.rings.start()
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.ingest.stop(5.0)
        self.rings.stop()
        self._server.stop(0).wait()
        self._store.close()
        (self.folder / "s").unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """The steps that came, scored or lost, in the order in which they came."""
        found: list[int] = []
        for item in list(self.ingest.items):
            if isinstance(item, BatchItem):
                found.append(item.batch.step)
            elif isinstance(item, GapItem):
                found += range(item.gap.first_step, item.gap.last_step + 1)
        return found

    def n_tokens(self) -> int:
        """The tokens that came, scored or lost."""
        items = list(self.ingest.items)
        return sum(
            len(i.batch.token_ids) for i in items if isinstance(i, BatchItem)
        ) + sum(i.gap.n_tokens for i in items if isinstance(i, GapItem))

    def faults(self, fault: str) -> float:
        """How often a ring was refused or given up for *fault*."""
        value = self.registry.get_sample_value(
            "innerwatch_ring_faults_total", {"fault": fault}
        )
        assert value is not None
        return value


def address(folder: Path) -> str:
    """Where the side in *folder* listens."""
    return f"unix:{folder}/s"


def make_sender(outbox: Outbox, where: str, transport: Transport) -> Sender:
    """Return a sender that was started."""
    sender = Sender(
        outbox=outbox,
        address=where,
        hello=hello,
        on_hello=lambda _: None,
        on_bank=lambda _: None,
        bank_digest=lambda: bank().digest,
        transport=transport,
    )
    sender.start()
    return sender


def step(number: int, width: int = WIDTH) -> Step:
    """Rows that no detector minds, the next of one request."""
    first = (number - 1) * N_ROWS
    return Step(
        step=number,
        bank_digest=bank().digest,
        captured_at=time.time(),
        n_rows_expected=N_ROWS,
        rows=Rows(
            request_ids=("a",),
            n_rows=np.array([N_ROWS]),
            first_positions=np.array([first]),
            token_ids=torch.arange(N_ROWS),
        ),
        facts=(RequestFacts(n_prompt_tokens=1),),
        shape=Shape(2, N_ROWS, width, 4, 0),
        values=np.zeros((2, N_ROWS, width), dtype=np.float32),
        squared_norms=np.ones((2, N_ROWS), dtype=np.float32),
        token_ids=np.arange(N_ROWS, dtype=np.int32),
    )


def wait_until(is_true: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait until *is_true*; fail with *what* if it never is."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.01)
