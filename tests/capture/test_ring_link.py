"""The outbox's way through a ring, with both sides in this process."""

import dataclasses
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest
import torch

from service.capture.outbox import Outbox
from service.capture.ring_link import RingLink, open_ring
from service.ring_record import request_from_record
from tests.capture.test_outbox import FULL, HOOK_POINT, make_step
from tests.ring.builders import Ring, make_ring


@dataclass
class Copied:
    """A copy from the device that is complete when it is said to be."""

    is_complete: bool = False

    def query(self) -> bool:
        return self.is_complete

    def synchronize(self) -> None:
        assert self.is_complete, "the engine's thread would have waited"


@dataclass
class Ends:
    """A link, what it carries, and the daemon's end."""

    outbox: Outbox
    ring: Ring
    link: RingLink
    peer: socket.socket

    def read(self) -> list[int]:
        """Steps that are in the ring; gaps are negative."""
        found = []
        while (record := self.ring.reader.read()) is not None:
            request = request_from_record(record)
            is_batch = request.WhichOneof("payload") == "batch"
            found.append(request.batch.step if is_batch else -request.gap.first_step)
        return found


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox, ring = Outbox(64 << 20), make_ring(1 << 16)
    link = RingLink(
        outbox=outbox,
        hook_points=(HOOK_POINT,),
        writer=ring.writer,
        connection=ours,
    )
    link.begin(outbox.begin_stream())
    with theirs:
        yield Ends(outbox=outbox, ring=ring, link=link, peer=theirs)
        link.close()


def test_a_step_is_kept_until_it_is_acknowledged(ends: Ends) -> None:
    """Once written it is in the ring, and still in the outbox until it is done."""
    ends.outbox.put(make_step(1), FULL)

    assert ends.link.pump()
    assert [1] == ends.read()
    assert not ends.outbox.is_empty()
    ends.ring.reader.acknowledge(1, 0)
    assert not ends.link.pump()
    assert ends.outbox.is_empty()


def test_a_copy_that_is_under_way_is_not_waited_for(ends: Ends) -> None:
    """It is written with a later push; nothing behind it overtakes it."""
    copied = Copied()
    event = cast(torch.cuda.Event, copied)
    ends.outbox.put(dataclasses.replace(make_step(1), copied=event), FULL)
    ends.outbox.put(make_step(2), FULL)

    assert not ends.link.pump()
    copied.is_complete = True
    assert ends.link.pump()
    assert ends.link.pump()
    assert [1, 2] == ends.read()


def test_a_full_ring_leaves_the_rest_in_the_outbox(ends: Ends) -> None:
    """What found no room goes in, once and in order, when there is some."""
    for number in range(1, 41):
        ends.outbox.put(make_step(number, n_rows=512), FULL)
    n_first = 0
    while ends.link.pump():
        n_first += 1
    found = ends.read()
    while ends.link.pump():
        found += ends.read()

    assert 0 < n_first < 40
    assert list(range(1, 41)) == found
    assert "" == ends.link.problem


def test_a_sleeping_reader_gets_one_wake_up(ends: Ends) -> None:
    """Only where the reader asked for it, a packet is sent."""
    ends.peer.setblocking(False)
    ends.outbox.put(make_step(1), FULL)
    ends.link.pump()
    with pytest.raises(BlockingIOError):
        ends.peer.recv(16)
    ends.ring.reader.sleep()
    for number in (2, 3):
        ends.outbox.put(make_step(number), FULL)
        ends.link.pump()

    assert 1 == len(ends.peer.recv(16))


def test_a_step_longer_than_the_ring_breaks_it(ends: Ends) -> None:
    """It can never go this way: the link says so, and nothing is raised."""
    ends.outbox.put(make_step(1, n_rows=4096, width=4), FULL)

    assert not ends.link.pump()
    assert ends.link.is_broken
    assert "length" in ends.link.problem
    assert not ends.link.is_alive()


def test_acknowledgements_that_cannot_be_break_it(ends: Ends) -> None:
    """Nothing leaves the outbox on the word of a daemon that is broken."""
    ends.outbox.put(make_step(1), FULL)
    ends.link.pump()
    ends.ring.reader.acknowledge(7, 0)
    ends.link.pump()

    assert ends.link.is_broken
    assert not ends.outbox.is_empty()


def test_a_daemon_that_is_gone_is_no_broken_ring(ends: Ends) -> None:
    """The next daemon is asked for a ring again."""
    assert ends.link.is_alive()
    ends.peer.close()

    assert not ends.link.is_alive()
    assert not ends.link.is_broken


def test_a_ring_that_the_daemon_gave_up_is_broken(ends: Ends) -> None:
    """What it could not read would not be read the next time either."""
    ends.ring.reader.give_up()

    assert not ends.link.is_alive()
    assert ends.link.is_broken


def test_no_ring_is_asked_for_over_tcp() -> None:
    """There is no memory to share with another host."""
    with pytest.raises(ValueError, match="needs a unix socket"):
        open_ring("127.0.0.1:1", "e", 0)
