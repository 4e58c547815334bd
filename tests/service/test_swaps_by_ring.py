"""A swap of an engine whose batches go through shared memory, or by gRPC."""

import dataclasses
from collections.abc import Iterator

import grpc
import pytest

from service.capture.outbox import Outbox
from service.capture.sender import Sender
from service.capture.settings import Transport
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.contract.transport_side import FULL, step
from tests.monitor.builders import bank
from tests.service.builders import Place, RunningDaemon, eventually, hello, place
from tests.service.swapping import LIVE, Engine, saved_bundle

WAYS: list[Transport] = ["grpc", "ring"]


@pytest.fixture
def where() -> Iterator[Place]:
    with place() as one, RunningDaemon(one):
        yield one


def is_promoted(operator: Engine) -> bool:
    """Ask for the set; False while an engine has not said yet what it computes."""
    try:
        operator.promote("other:1")
    except grpc.RpcError as error:
        if "has not yet sent" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("transport", WAYS)
def test_a_set_goes_live_when_the_engine_computes_it(
    where: Place, transport: Transport, is_busy: bool
) -> None:
    """
    The order reaches the engine, and its heartbeats, or batches, bring the set live.
    """
    outbox = Outbox(64 << 20)
    digests = [bank().digest]

    def on_bank(ordered: pb.Bank) -> None:
        digests.append(ordered.digest)

    sender = Sender(
        outbox=outbox,
        address=where.address,
        hello=lambda: hello(k_max=8),
        on_hello=lambda _: None,
        on_bank=on_bank,
        bank_digest=lambda: digests[-1],
        transport=transport,
    )
    sender.start()
    eventually(lambda: sender.is_connected, "connected")
    with Engine(where.address, engine="operator") as operator:
        operator.load(saved_bundle(where.folder))
        before = operator.states()
        eventually(lambda: is_promoted(operator), "the engine was heard")
        number = 0

        def is_live() -> bool:
            nonlocal number
            if is_busy:
                # Never idle for as long as a heartbeat takes to be due.
                number += 1
                made = dataclasses.replace(step(number), bank_digest=digests[-1])
                outbox.put(made, FULL)
            return operator.states().get("other:1") == "live"

        eventually(is_live, "live")
    sender.close()

    assert "live" == before[LIVE]
    assert 2 == len(digests)
