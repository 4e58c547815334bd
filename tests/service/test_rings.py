"""Who gets a ring from the daemon, and what those who do not cost it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from service.capture.messages import fill_batch
from service.capture.ring_link import open_ring
from service.daemon.exporter import ListenError
from service.ring.handover import (
    MAGIC,
    MAX_PACKET,
    HandoverError,
    new_socket,
    receive_ring,
    request_packet,
)
from service.ring.layout import HEADER_BYTES, WRITTEN
from service.ring.memory import map_sealed
from service.ring_record import record_parts
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc
from tests.contract.transport_side import N_ROWS, Side, address, step, wait_until
from tests.monitor.builders import EARLY, ENGINE, LATE
from tests.service.builders import hello

NOBODY = 65534


@pytest.fixture
def side() -> Iterator[Side]:
    with tempfile.TemporaryDirectory(prefix="iw-") as name, Side(Path(name)) as one:
        yield one


def say_hello(side: Side, engine: str = ENGINE) -> None:
    """Have the side know *engine*."""
    with grpc.insecure_channel(address(side.folder)) as channel:
        rpc.CaptureStub(channel).Hello(hello(engine), timeout=20)


def connect(side: Side) -> socket.socket:
    """Return a connection on which nothing was said."""
    connection = new_socket()
    connection.settimeout(10.0)
    connection.connect(f"{side.folder}/s.ring")
    return connection


def record(number: int, engine: str = "") -> bytes:
    """A step as it goes into a ring."""
    request = pb.StreamRequest(engine=engine)
    fill_batch(request.batch, step(number), (EARLY, LATE))
    return b"".join(record_parts(request, ()))


def assert_goes_on(side: Side) -> None:
    """Somebody else gets a ring, and is read."""
    say_hello(side, "another")
    before = len(side.steps())
    writer, connection = open_ring(address(side.folder), "another", 0)
    with connection:
        assert writer.push([record(1)])
        wait_until(lambda: len(side.steps()) == before + 1, "another's step")


def test_who_said_hello_gets_a_ring(side: Side) -> None:
    """
    It is sealed memory of the size that was told, and what is pushed is scored.
    """
    say_hello(side)
    with connect(side) as connection:
        connection.send(request_packet(ENGINE, 0))
        fd, capacity, _ = receive_ring(connection)

        assert HEADER_BYTES + capacity == len(map_sealed(fd, capacity))
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        os.close(fd)
    assert_goes_on(side)


def test_an_unknown_engine_gets_none(side: Side) -> None:
    """
    A name that never said Hello is refused, in words, and counted.
    """
    with pytest.raises(HandoverError, match="that said Hello, got 'nobody'"):
        open_ring(address(side.folder), "nobody", 0)

    assert 1 == side.faults("peer_engine")
    assert_goes_on(side)


@pytest.mark.parametrize(
    "packet",
    [b"\0", b"GET / HTTP/1.1\r\n\r\n", MAGIC, MAGIC + bytes(3), MAGIC + bytes(4),
     MAGIC + bytes(4) + b"\xff\xfe", MAGIC + bytes(4) + b"e" * 513, bytes(MAX_PACKET)],
)  # fmt: skip
def test_rubbish_gets_none(side: Side, packet: bytes) -> None:
    """
    Whatever is sent that is no request is refused, and counted.
    """
    with connect(side) as connection:
        connection.send(packet)

        with pytest.raises(HandoverError):
            receive_ring(connection)
    assert 1 == side.faults("peer_request")
    assert_goes_on(side)


def test_who_says_nothing_is_left(side: Side) -> None:
    """
    A peer that only holds the connection is let go after a while, others meanwhile
    are served.
    """
    with connect(side) as connection:
        assert_goes_on(side)
        wait_until(lambda: side.faults("peer_silent") == 1, "given up")

        with pytest.raises(HandoverError):
            receive_ring(connection)


def test_another_user_gets_none(side: Side) -> None:
    """
    Even where the socket's mode lets it in, the peer's user id is checked.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    say_hello(side)
    side.folder.chmod(0o777)
    (side.folder / "s.ring").chmod(0o777)
    child = os.fork()
    if child == 0:  # Nothing of pytest may run in here.
        status = 3
        try:
            os.setuid(NOBODY)
            open_ring(address(side.folder), ENGINE, 0)[1].close()
            status = 0
        except HandoverError as error:
            status = 1 if f"got {NOBODY}" in str(error) else 2
        finally:
            os._exit(status)

    assert 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 1 == side.faults("peer_uid")
    assert_goes_on(side)


def test_the_socket_is_its_owner_s(side: Side) -> None:
    """
    Nobody else can connect to begin with.
    """
    assert 0o600 == (side.folder / "s.ring").stat().st_mode & 0o777


def test_a_spoilt_ring_ends_alone(side: Side) -> None:
    """
    The fault is counted, the writer is told, and other rings are read on.
    """
    say_hello(side)
    with connect(side) as connection:
        connection.send(request_packet(ENGINE, 0))
        fd, capacity, _ = receive_ring(connection)
        memory = map_sealed(fd, capacity)
        os.close(fd)
        np.frombuffer(memory, dtype="<u8")[WRITTEN] = 1 << 60

        wait_until(lambda: side.faults("cursor") == 1, "the fault is counted")
        assert b"" == connection.recv(1)
    assert_goes_on(side)


def test_a_record_that_is_no_message_ends_its_ring(side: Side) -> None:
    """
    Bytes that cannot be read say nothing of what was lost: the ring is given up.
    """
    say_hello(side)
    writer, connection = open_ring(address(side.folder), ENGINE, 0)
    with connection:
        writer.push([b"\xff\xff\xff garbage"])

        wait_until(lambda: side.faults("message") == 1, "the fault is counted")
        wait_until(lambda: writer.is_given_up, "the writer is told")
    assert_goes_on(side)


def test_a_ring_is_one_engine_s(side: Side) -> None:
    """
    A record that names another engine is counted as that of the ring's own.
    """
    say_hello(side)
    writer, connection = open_ring(address(side.folder), ENGINE, 0)
    with connection:
        writer.push([record(1, "somebody else")])
        wait_until(lambda: writer.take_acknowledged() == 1, "acknowledged")

    assert [ENGINE] == [
        item.batch.engine for item in side.ingest.items if hasattr(item, "batch")
    ]


def test_what_a_killed_engine_had_written_is_scored(side: Side) -> None:
    """
    The end of the connection is the end of the writer, not of what it wrote.
    """
    say_hello(side)
    side.ingest.gate.clear()
    writer, connection = open_ring(address(side.folder), ENGINE, 0)
    for number in range(1, 11):
        writer.push([record(number)])
    connection.close()
    side.ingest.gate.set()

    wait_until(lambda: side.steps() == list(range(1, 11)), "all ten")
    sample = "innerwatch_tokens_scored_total"
    wait_until(
        lambda: side.registry.get_sample_value(sample) == 10 * N_ROWS, "all scored"
    )


def test_a_second_ring_takes_the_first_one_s_turn(side: Side) -> None:
    """
    An engine that comes again has one ring: the old one is not read any more.
    """
    say_hello(side)
    _, old = open_ring(address(side.folder), ENGINE, 0)
    writer, new = open_ring(address(side.folder), ENGINE, 0)
    with old, new:
        old.setblocking(True)
        assert b"" == old.recv(1)
        writer.push([record(1)])
        wait_until(lambda: side.steps() == [1], "the new one is read")


def test_an_idle_ring_wakes_at_once(side: Side) -> None:
    """
    A reader that sleeps asks to be woken, and hears of the record by the connection.
    """
    say_hello(side)
    writer, connection = open_ring(address(side.folder), ENGINE, 0)
    with connection:
        wait_until(writer.wake, "the reader sleeps")
        writer.push([record(1)])
        connection.send(b"\x01")

        wait_until(lambda: writer.take_acknowledged() == 1, "acknowledged")


def test_a_file_in_the_socket_s_place_is_not_removed(tmp_path: Path) -> None:
    """
    Only what is a socket is taken away at start.
    """
    (tmp_path / "s.ring").write_text("mine")
    with pytest.raises(ListenError, match="expected a socket, found a file"):
        Side(tmp_path)

    assert "mine" == (tmp_path / "s.ring").read_text()
