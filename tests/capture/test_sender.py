"""The sender against a real gRPC server on a unix socket."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from service.capture.outbox import Outbox
from service.capture.sender import Sender
from service.capture.settings import CaptureError
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from tests.capture.test_outbox import FULL, HOOK_POINT, make_silent_step, make_step


class Daemon(pb_grpc.CaptureServicer):
    """Keeps all it is sent, and acknowledges it."""

    def __init__(self) -> None:
        self.requests: list[pb.StreamRequest] = []
        self.orders: list[pb.Bank] = []

    def Hello(  # noqa: N802 - gRPC's spelling
        self, request: pb.HelloRequest, context: grpc.ServicerContext
    ) -> pb.HelloResponse:
        return pb.HelloResponse()

    def Stream(  # noqa: N802 - gRPC's spelling
        self,
        request_iterator: Iterator[pb.StreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamResponse]:
        for request in request_iterator:
            self.requests.append(request)
            while self.orders:
                yield pb.StreamResponse(bank=self.orders.pop(0))
            yield pb.StreamResponse()

    def kinds(self) -> list[str | None]:
        return [request.WhichOneof("payload") for request in self.requests]


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="iw-") as folder:
        yield f"unix:{Path(folder)}/s"


@pytest.fixture
def daemon(address: str) -> Iterator[Daemon]:
    daemon = Daemon()
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_CaptureServicer_to_server(daemon, server)
    server.add_insecure_port(address)
    server.start()
    yield daemon
    server.stop(0).wait()


def make_sender(
    outbox: Outbox,
    address: str,
    hello: Callable[[], pb.HelloRequest],
    on_bank: Callable[[pb.Bank], None] = lambda _: None,
    bank_digest: Callable[[], str] = lambda: "",
) -> Sender:
    sender = Sender(
        outbox=outbox,
        address=address,
        hello=hello,
        on_hello=lambda _: None,
        on_bank=on_bank,
        bank_digest=bank_digest,
    )
    sender.start()
    return sender


def make_hello() -> pb.HelloRequest:
    return pb.HelloRequest(engine="e", hook_points=[HOOK_POINT])


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_left_is_sent_before_the_goodbye(address: str, daemon: Daemon) -> None:
    """A stop sends everything, in order, and says that it was everything."""
    outbox = Outbox(1 << 20)
    sender = make_sender(outbox, address, make_hello)
    wait_until(lambda: sender.is_connected)
    for number in range(1, 51):
        outbox.put(make_step(number), FULL)

    sender.close()

    wait_until(lambda: "goodbye" in daemon.kinds())
    steps = [
        r.batch.step for r in daemon.requests if r.WhichOneof("payload") == "batch"
    ]
    assert list(range(1, 51)) == steps
    assert "goodbye" == daemon.kinds()[-1]


def test_nothing_that_goes_wrong_ends_the_sender(address: str, daemon: Daemon) -> None:
    """Unreadable model files are reported and tried again, whatever the error."""
    errors: list[Exception] = [OSError("disk"), RuntimeError("?"), ValueError("no")]

    def hello() -> pb.HelloRequest:
        if errors:
            raise errors.pop()
        return make_hello()

    sender = make_sender(Outbox(1 << 20), address, hello)

    wait_until(lambda: sender.is_connected)
    sender.close()


def test_heartbeats_say_what_the_last_step_showed(address: str, daemon: Daemon) -> None:
    """After rows that no tap wrote an idle engine says that it is not proven."""
    outbox = Outbox(1 << 20)
    sender = make_sender(outbox, address, make_hello)

    def proven() -> list[bool]:
        return [
            r.heartbeat.is_proven for r in daemon.requests if r.HasField("heartbeat")
        ]

    wait_until(lambda: len(proven()) > 0)
    outbox.put(make_silent_step(1), FULL)
    wait_until(lambda: not proven()[-1])
    outbox.put(make_step(2), FULL)
    wait_until(lambda: proven()[-1])
    sender.close()

    assert proven()[0]


def test_an_order_acknowledges_nothing(address: str, daemon: Daemon) -> None:
    """Banks are taken between acknowledgements; no step is forgotten for one."""
    outbox = Outbox(1 << 20)
    taken: list[str] = []
    sender = make_sender(
        outbox,
        address,
        make_hello,
        on_bank=lambda bank: taken.append(bank.digest),
        bank_digest=lambda: taken[-1] if taken else "",
    )
    wait_until(lambda: sender.is_connected)
    daemon.orders = [pb.Bank(digest="one"), pb.Bank(digest="two")]
    for number in range(1, 9):
        outbox.put(make_step(number), FULL)

    wait_until(outbox.is_empty)
    sender.close()

    assert ["one", "two"] == taken
    kinds = daemon.kinds()
    assert 8 == kinds.count("batch")
    assert "goodbye" == kinds[-1]
    beats = [r.heartbeat for r in daemon.requests if r.HasField("heartbeat")]
    assert {b.bank_digest for b in beats} <= {"", "two"}


def test_a_refused_order_is_reported_and_the_stream_goes_on(
    address: str, daemon: Daemon
) -> None:
    """The daemon hears which bank it was and why; what was computed before goes on."""

    def refuse(bank: pb.Bank) -> None:
        raise CaptureError(f"bank {bank.digest}: too wide")

    outbox = Outbox(1 << 20)
    sender = make_sender(outbox, address, make_hello, on_bank=refuse)
    wait_until(lambda: sender.is_connected)
    daemon.orders = [pb.Bank(digest="wide")]

    wait_until(lambda: "bank_refusal" in daemon.kinds())
    outbox.put(make_step(1), FULL)
    wait_until(outbox.is_empty)
    sender.close()

    (refusal,) = [r.bank_refusal for r in daemon.requests if r.HasField("bank_refusal")]
    assert ("wide", "bank wide: too wide") == (refusal.digest, refusal.reason)
    assert "goodbye" == daemon.kinds()[-1]
