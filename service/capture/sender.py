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
from service.capture.step import Step
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc

_log = logging.getLogger("innerwatch.capture")

_RETRY_SECONDS = 0.5
_HELLO_TIMEOUT_SECONDS = 5.0
_HEARTBEAT_SECONDS = 1.0
_MAX_UNACKNOWLEDGED = 256
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
    ) -> None:
        self._outbox = outbox
        self._address = address
        self._make_hello = hello
        self._on_hello = on_hello
        self._on_bank = on_bank
        self._bank_digest = bank_digest
        self._refusals: deque[pb.BankRefusal] = deque()
        self._is_proven = True  # By the trial step, or there were no sender.
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
        self.is_connected = True
        _log.info("innerwatch: connected to the daemon at %s", self._address)
        stream = self._outbox.begin_stream()
        self._refusals.clear()
        ended = threading.Event()
        in_flight: deque[Entry | None] = deque()
        try:
            for answer in stub.Stream(self._requests(hello, stream, in_flight, ended)):
                if answer.HasField("bank"):
                    self._take(answer.bank)
                    continue
                if answer.refusal:
                    self._report(f"the daemon refused a batch: {answer.refusal}")
                # One other answer for each request, in order; heartbeats hold no entry.
                if in_flight and in_flight.popleft() is not None:
                    self._outbox.acknowledge(stream)
        finally:
            ended.set()

    def _requests(
        self,
        hello: pb.HelloRequest,
        stream: int,
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
            entry = self._outbox.next_entry(
                stream, _MAX_UNACKNOWLEDGED, _HEARTBEAT_SECONDS
            )
            if isinstance(entry, Step):
                last_step = entry.step
                fill_batch(request.batch, entry, tuple(hello.hook_points))
                if entry.n_rows:
                    self._is_proven = entry.is_written
            elif entry is not None:
                request.gap.CopyFrom(gap_message(entry))
            else:
                if time.monotonic() - last_sent < _HEARTBEAT_SECONDS:
                    continue
                request.heartbeat.step = last_step
                request.heartbeat.sent_at = time.time()
                request.heartbeat.is_proven = self._is_proven
                request.heartbeat.bank_digest = self._bank_digest()
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

    def _report(self, problem: str) -> None:
        # Once a problem, not once a retry.
        if problem != self._last_problem:
            self._last_problem = problem
            _log.warning("innerwatch: %s", problem)


def _text_of(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call) and error.code() in _REFUSALS:
        return f"the daemon refused this engine: {error.details()}"
    if isinstance(error, grpc.Call):
        return f"daemon not reachable: {error.code().name}: {error.details()}"
    return f"daemon not reachable: {error!r}"
