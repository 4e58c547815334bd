"""Carries the outbox to the daemon: connects, says hello, streams, starts over.

Rule: nothing here runs on the engine's thread, and nothing here ends for good before
`close`. A daemon that is absent, killed, stopped or slow costs two retries a second.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from service.capture.messages import fill_batch, gap_message
from service.capture.outbox import Entry, Outbox
from service.capture.ring_link import RingLink, open_ring
from service.capture.settings import Transport
from service.capture.step import Step
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc

_log = logging.getLogger("innerwatch.capture")

_RETRY_SECONDS = 0.5
_HELLO_TIMEOUT_SECONDS = 5.0
_HEARTBEAT_SECONDS = 1.0
_MAX_UNACKNOWLEDGED = 256
# The engine's thread goes first: after a sleep of 0 this one would have the
# interpreter again before the other has woken.
_YIELD_SECONDS = 5e-5
_TICK_SECONDS = 0.02  # So long a step waits for the ring, at most.
_REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class Sender:
    """
    Owns the connection to the daemon.

    Args:
        outbox: What to send.

        address: gRPC address of the daemon.

        hello: Makes the `HelloRequest`; called once, here, because hashing the
            model's weights takes a while.

        on_hello: Gets each `HelloResponse`; raises to refuse it.

        on_bank: Gets each bank that the daemon wants in the place of the one before;
            raises `ValueError` to refuse it.

        bank_digest: Of what the next step computes; "" for nothing.

        transport: How batches go; see `CaptureSettings`.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        address: str,
        hello: Callable[[], pb.HelloRequest],
        on_hello: Callable[[pb.HelloResponse], None],
        on_bank: Callable[[pb.Bank], None],
        bank_digest: Callable[[], str],
        transport: Transport = "auto",
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._is_ring_broken = False
        self._ring_problem = ""
        self._address = address
        self._make_hello = hello
        self._on_hello = on_hello
        self._on_bank = on_bank
        self._bank_digest = bank_digest
        self._refusals: deque[pb.BankRefusal] = deque()
        self._is_proven = True  # By the trial step, or there were no sender.
        # Held while an entry's memory is read: once acknowledged by a later stream it
        # is another step's, and gRPC may still ask an ended stream for its next.
        self._reading = threading.Lock()
        self._closing = threading.Event()
        self._last_problem = ""
        self.is_connected = False
        self._thread = threading.Thread(
            target=self._run, name="innerwatch-sender", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Give what is unsent *timeout_seconds*, then stop."""
        deadline = time.monotonic() + timeout_seconds
        while self.is_connected and time.monotonic() < deadline:
            if self._outbox.is_empty():
                break
            time.sleep(0.01)
        self._closing.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        hello = None
        while not self._closing.is_set():
            try:
                hello = hello or self._make_hello()
                with grpc.insecure_channel(self._address, options=_OPTIONS) as channel:
                    self._serve(pb_grpc.CaptureStub(channel), hello)
            except grpc.RpcError as error:
                self._report(_text_of(error))
            except ValueError as error:
                self._report(str(error))
            except Exception as error:  # noqa: BLE001 - see the rule above
                self._report(f"{type(error).__name__}: {error}")
            finally:
                self.is_connected = False
            self._closing.wait(_RETRY_SECONDS)

    def _serve(self, stub: pb_grpc.CaptureStub, hello: pb.HelloRequest) -> None:
        self._on_hello(stub.Hello(hello, timeout=_HELLO_TIMEOUT_SECONDS))
        self._last_problem = ""
        link = self._open_link(hello)
        stream = self._outbox.begin_stream()
        self._refusals.clear()
        if link is not None:
            link.begin(stream)
        self.is_connected = True
        way = "gRPC" if link is None else "a ring"
        _log.info("innerwatch: connected to %s by %s", self._address, way)
        ended = threading.Event()
        in_flight: deque[Entry | None] = deque()
        try:
            requests = self._requests(hello, stream, link, in_flight, ended)
            for answer in stub.Stream(requests):
                if answer.HasField("bank"):
                    self._take(answer.bank)
                    continue
                if answer.refusal:
                    self._report(f"the daemon refused a batch: {answer.refusal}")
                # One other answer for each request, in order; heartbeats hold no entry.
                if in_flight and in_flight.popleft() is not None:
                    self._outbox.acknowledge(stream)
        finally:
            with self._reading:
                ended.set()
            self._leave(link)

    def _open_link(self, hello: pb.HelloRequest) -> RingLink | None:
        """Return a ring, or None where gRPC carries the batches."""
        if self._transport == "grpc" or not self._address.startswith("unix:"):
            return None
        if self._is_ring_broken and self._transport == "auto":
            # Once by gRPC, so that what broke it cannot stop everything; a daemon
            # that comes anew is asked again.
            self._is_ring_broken = False
            return None
        try:
            writer, connection = open_ring(self._address, hello.engine, hello.rank)
        except (ValueError, OSError) as error:
            if self._transport == "ring":
                raise
            self._report_ring(str(error))
            return None
        return RingLink(
            outbox=self._outbox,
            hook_points=_owned(hello),
            writer=writer,
            connection=connection,
        )

    def _leave(self, link: RingLink | None) -> None:
        if link is None:
            return
        if link.is_broken:
            self._is_ring_broken = True
            self._report_ring(link.problem)
        link.close()

    def _report_ring(self, problem: str) -> None:
        # Once a problem: without a ring everything goes on, at a higher price.
        if problem != self._ring_problem:
            self._ring_problem = problem
            _log.warning("innerwatch: batches go by gRPC, not a ring: %s", problem)

    def _requests(
        self,
        hello: pb.HelloRequest,
        stream: int,
        link: RingLink | None,
        in_flight: deque[Entry | None],
        ended: threading.Event,
    ) -> Iterator[pb.StreamRequest]:
        last_step = 0
        last_sent = 0.0
        while not ended.is_set():
            request = pb.StreamRequest(engine=hello.engine, rank=hello.rank)
            if self._closing.is_set():
                if self._outbox.is_empty():
                    request.goodbye.SetInParent()
                    in_flight.append(None)
                    yield request
                return
            if self._refusals:
                request.bank_refusal.CopyFrom(self._refusals.popleft())
                in_flight.append(None)
                yield request
                continue
            entry = None
            if link is None:
                entry = self._outbox.next_entry(
                    stream, _MAX_UNACKNOWLEDGED, _HEARTBEAT_SECONDS
                )
            elif not self._tick(link, ended):
                return
            if isinstance(entry, Step):
                last_step = entry.step
                with self._reading:
                    if ended.is_set():
                        return
                    fill_batch(request.batch, entry, _owned(hello))
                    if entry.n_rows:
                        self._is_proven = entry.is_written
            elif entry is not None:
                request.gap.CopyFrom(gap_message(entry))
            else:
                if time.monotonic() - last_sent < _HEARTBEAT_SECONDS:
                    continue
                is_idle = True
                if link is not None and (step := link.last_step) is not None:
                    is_idle, last_step = last_step == step, step
                    self._is_proven = link.is_proven
                request.heartbeat.step = last_step
                request.heartbeat.sent_at = time.time()
                request.heartbeat.is_proven = self._is_proven
                request.heartbeat.bank_digest = self._bank_digest()
                if link is not None:
                    link.beat(request, is_idle=is_idle)
            in_flight.append(entry)
            last_sent = time.monotonic()
            yield request

    def _take(self, bank: pb.Bank) -> None:
        try:
            self._on_bank(bank)
        except ValueError as error:
            refusal = pb.BankRefusal(digest=bank.digest, reason=str(error))
            self._refusals.append(refusal)
            self._report(str(error))

    def _tick(self, link: RingLink, ended: threading.Event) -> bool:
        """Carry what the engine's thread left; False when it goes no further."""
        while True:
            with self._reading:
                if ended.is_set():
                    return False
                if not link.pump():
                    break
            time.sleep(_YIELD_SECONDS)
        if link.n_refused:
            self._report("the daemon refused a batch; its log says why")
        if not link.is_alive():
            return False
        self._closing.wait(_TICK_SECONDS)
        return True

    def _report(self, problem: str) -> None:
        # Once a problem, not once a retry.
        if problem != self._last_problem:
            self._last_problem = problem
            _log.warning("innerwatch: %s", problem)


def _owned(hello: pb.HelloRequest) -> tuple[str, ...]:
    return tuple(hello.rank_hook_points or hello.hook_points)


def _text_of(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call) and error.code() in _REFUSALS:
        return f"the daemon refused this engine: {error.details()}"
    if isinstance(error, grpc.Call):
        return f"daemon not reachable: {error.code().name}: {error.details()}"
    return f"daemon not reachable: {error!r}"
