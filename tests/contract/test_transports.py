"""What every way from the engine to the daemon promises."""

import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from service.capture.outbox import Outbox
from service.capture.sender import Sender
from service.capture.settings import Transport
from service.daemon.items import BatchItem, GapItem, GoodbyeItem
from service.ring.layout import WRITTEN
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.contract.transport_side import (
    FULL,
    N_ROWS,
    Side,
    address,
    make_sender,
    step,
    wait_until,
)
from tests.service.builders import RunningDaemon, eventually, place

TRANSPORTS: list[Transport] = ["grpc", "ring"]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Transport:
    name: Transport = request.param
    return name


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iw-") as name:
        yield Path(name)


def connected(outbox: Outbox, folder: Path, transport: Transport) -> Sender:
    """Return a sender that has reached the side in *folder*."""
    sender = make_sender(outbox, address(folder), transport)
    wait_until(lambda: sender.is_connected, "connected")
    return sender


def test_what_is_sent_arrives_once_and_in_order(
    folder: Path, transport: Transport
) -> None:
    """
    Batches and the losses between them come as they were put, and nothing else.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as side:
        sender = connected(outbox, folder, transport)
        for number in range(1, 301):
            if number % 10 == 0:
                outbox.lose(step(number), FULL)
            else:
                outbox.put(step(number), FULL)
        wait_until(outbox.is_empty, "all acknowledged")
        sender.close()

        assert list(range(1, 301)) == side.steps()
        assert 30 == sum(isinstance(i, GapItem) for i in side.ingest.items)


def test_what_arrives_is_what_was_sent(folder: Path, transport: Transport) -> None:
    """
    Rows, layout and clock are the same on both sides.
    """
    outbox = Outbox(64 << 20)
    sent = step(1)
    assert sent.values is not None
    sent.values[:] = np.random.default_rng(0).standard_normal(sent.values.shape)
    with Side(folder) as side:
        sender = connected(outbox, folder, transport)
        outbox.put(sent, FULL)
        wait_until(outbox.is_empty, "acknowledged")
        sender.close()

        (item,) = [i for i in side.ingest.items if isinstance(i, BatchItem)]
    assert sent.captured_at == item.captured_at
    assert ("a",) == item.batch.request_ids
    assert [0, N_ROWS] == item.batch.row_offsets.tolist()
    for site, values in enumerate(item.batch.columns.values()):
        assert sent.values[site, :, : values.shape[1]].tolist() == values.tolist()


def test_nothing_is_forgotten_before_it_is_acknowledged(
    folder: Path, transport: Transport
) -> None:
    """
    What the daemon has not scored and stored is kept.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as side:
        sender = connected(outbox, folder, transport)
        side.ingest.gate.clear()
        for number in range(1, 51):
            outbox.put(step(number), FULL)
        time.sleep(0.2)
        has_kept = not outbox.is_empty()
        side.ingest.gate.set()
        wait_until(outbox.is_empty, "all acknowledged")
        sender.close()

        assert has_kept
        assert list(range(1, 51)) == side.steps()


def test_a_stopped_reader_costs_tokens_and_no_time(
    folder: Path, transport: Transport
) -> None:
    """
    With everything full a put is as quick, and every token is scored or lost, once.
    """
    outbox = Outbox(400 * step(1).n_bytes)
    with Side(folder, ring_bytes=64 << 10) as side:
        sender = connected(outbox, folder, transport)
        side.ingest.gate.clear()
        steps = [step(number) for number in range(1, 3001)]
        began = time.monotonic()
        for one in steps:
            outbox.put(one, FULL)
            took = time.monotonic() - began
        side.ingest.gate.set()
        wait_until(outbox.is_empty, "all acknowledged")
        sender.close()

        lost = [i.gap.n_tokens for i in side.ingest.items if isinstance(i, GapItem)]
        assert sum(lost) > 0
        assert 3000 * N_ROWS == side.n_tokens()
        assert list(range(1, 3001)) == side.steps()
    assert took < 10.0


def test_a_slow_reader_gets_everything(folder: Path, transport: Transport) -> None:
    """
    While there is room nothing is lost, however long it takes.
    """
    outbox = Outbox(64 << 20)
    with Side(folder, ring_bytes=16 << 10) as side:
        side.ingest.seconds_each = 0.005
        sender = connected(outbox, folder, transport)
        for number in range(1, 201):
            outbox.put(step(number), FULL)
        wait_until(outbox.is_empty, "all acknowledged")
        sender.close()

        assert list(range(1, 201)) == side.steps()
        assert not any(isinstance(i, GapItem) for i in side.ingest.items)


def test_what_was_not_acknowledged_is_sent_again(
    folder: Path, transport: Transport
) -> None:
    """
    A daemon that ends with work undone leaves it to the next one, in order.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as first:
        sender = connected(outbox, folder, transport)
        for number in range(1, 21):
            outbox.put(step(number), FULL)
        wait_until(outbox.is_empty, "the first are done")
        first.ingest.gate.clear()
        for number in range(21, 41):
            outbox.put(step(number), FULL)
    for number in range(41, 61):
        outbox.put(step(number), FULL)
    with Side(folder) as second:
        wait_until(outbox.is_empty, "the rest is done")
        sender.close()

        assert list(range(1, 21)) == first.steps()[:20]
        assert list(range(21, 61)) == second.steps()


def test_a_killed_daemon_costs_nothing_that_was_kept(transport: Transport) -> None:
    """
    Stopped, killed and started anew, the daemon has every token of every step.
    """
    outbox = Outbox(64 << 20)
    n_steps = 40
    with place() as where:
        with RunningDaemon(where) as daemon:
            sender = make_sender(outbox, where.address, transport)
            wait_until(lambda: sender.is_connected, "connected")
            daemon.process.send_signal(signal.SIGSTOP)
            for number in range(1, n_steps + 1):
                outbox.put(step(number), FULL)
            daemon.stop(signal.SIGKILL)
        with RunningDaemon(where) as again:
            wait_until(outbox.is_empty, "all acknowledged", 30.0)
            sender.close()

            sample = "innerwatch_tokens_expected_total"
            eventually(lambda: n_steps * N_ROWS == again.metric(sample), "every token")


def test_a_step_that_the_daemon_refuses_holds_nothing_up(
    folder: Path, transport: Transport
) -> None:
    """
    It is counted as lost and acknowledged; those behind it are scored.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as side:
        sender = connected(outbox, folder, transport)
        outbox.put(step(1, width=0), FULL)
        outbox.put(step(2), FULL)
        wait_until(outbox.is_empty, "both acknowledged")
        sender.close()

        refused = side.registry.get_sample_value("innerwatch_batches_refused_total")
        scored = side.registry.get_sample_value("innerwatch_tokens_scored_total")
        assert (1, N_ROWS) == (refused, scored)


def test_a_close_sends_everything_and_says_goodbye(
    folder: Path, transport: Transport
) -> None:
    """
    The last thing that an engine says is that it has sent all it had.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as side:
        sender = connected(outbox, folder, transport)
        for number in range(1, 101):
            outbox.put(step(number), FULL)
        sender.close()

        wait_until(
            lambda: any(isinstance(i, GoodbyeItem) for i in side.ingest.items),
            "a goodbye",
        )
        goodbye = next(
            n for n, i in enumerate(side.ingest.items) if isinstance(i, GoodbyeItem)
        )
        assert list(range(1, 101)) == side.steps()
        assert not any(isinstance(i, BatchItem) for i in side.ingest.items[goodbye:])


def test_a_ring_that_is_torn_costs_nothing(folder: Path) -> None:
    """
    The daemon gives it up, names the fault and goes on; what was in it comes by gRPC.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as side:
        sender = connected(outbox, folder, "auto")
        side.ingest.gate.clear()
        for number in range(1, 41):
            outbox.put(step(number), FULL)
        spoil_cursors()
        side.ingest.gate.set()
        # Whoever still writes sets the cursor right again: until the reader has seen.
        wait_until(
            lambda: spoil_cursors() or side.faults("cursor") == 1, "the fault is found"
        )
        wait_until(outbox.is_empty, "all acknowledged")
        sender.close()

        assert 1 == side.faults("cursor")
        assert set(range(1, 41)) == set(side.steps())
        expected = side.registry.get_sample_value("innerwatch_tokens_expected_total")
        assert 40 * N_ROWS == expected


def test_without_rings_everything_goes_by_grpc(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A daemon that hands out none is served as before, and the log says so once.
    """
    outbox = Outbox(64 << 20)
    with Side(folder) as side:
        (folder / "s.ring").unlink()
        sender = connected(outbox, folder, "auto")
        for number in range(1, 21):
            outbox.put(step(number), FULL)
        wait_until(outbox.is_empty, "all acknowledged")
        sender.close()

        assert list(range(1, 21)) == side.steps()
    assert 1 == caplog.text.count("batches go by gRPC, not a ring")


def spoil_cursors() -> bool:
    """Write over the write cursor of every ring that this process has mapped; False."""
    maps = Path("/proc/self/maps").read_text()
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        for match in re.finditer(r"^([0-9a-f]+)-.*innerwatch-ring", maps, re.M):
            memory.seek(int(match.group(1), 16) + 8 * WRITTEN)
            with suppress(OSError):  # Given up since, and unmapped.
                memory.write(b"\xff" * 8)
    return False


def test_the_reasons_of_loss_are_the_outbox_s(
    folder: Path, transport: Transport
) -> None:
    """
    What was lost while no daemon was there is told with that reason.
    """
    outbox = Outbox(step(1).n_bytes)
    sender = make_sender(outbox, address(folder), transport)
    outbox.put(step(1), FULL)
    outbox.put(step(2), pb.LOSS_REASON_DISCONNECTED)
    with Side(folder) as side:
        wait_until(outbox.is_empty, "both acknowledged")
        sender.close()

        (gap,) = [i.gap for i in side.ingest.items if isinstance(i, GapItem)]
        assert ("disconnected", 2, N_ROWS) == (
            gap.reason.value,
            gap.first_step,
            gap.n_tokens,
        )
        assert [1, 2] == side.steps()
