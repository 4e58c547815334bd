"""A ring between two honest sides."""

import fcntl
import mmap
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ring.layout import HEADER_BYTES, WRITTEN, RingError, checksum
from service.ring.memory import create, map_sealed
from service.ring.writer import RingWriter
from tests.ring.builders import make_ring, payload


@given(
    st.lists(st.one_of(st.integers(0, 2016), st.just("read")), max_size=80),
    st.sampled_from([4096, 4160, 8192]),
)
def test_what_is_pushed_is_read_once_and_in_order(
    actions: list[int | str], capacity: int
) -> None:
    """
    Whatever the lengths and however reads and pushes alternate, nothing that a push
    took is missing, repeated or changed.
    """
    ring = make_ring(capacity)
    taken: list[bytes] = []
    found: list[bytes] = []
    for number, action in enumerate(actions):
        if isinstance(action, int):
            record = payload(number, action)
            if ring.writer.push([record[: action // 3], record[action // 3 :]]):
                taken.append(record)
        elif (record_read := ring.reader.read()) is not None:
            found.append(record_read)
    while (record_read := ring.reader.read()) is not None:
        found.append(record_read)

    assert taken == found


def test_a_full_ring_refuses_and_counts() -> None:
    """
    A push without room returns at once, changes nothing, and works after a read.
    """
    ring = make_ring(4096)
    pushes = [ring.writer.push([payload(i, 1000)]) for i in range(6)]

    assert [True, True, True, False, False, False] == pushes
    assert 3 == ring.writer.n_full
    assert payload(0, 1000) == ring.reader.read()
    assert ring.writer.push([payload(9, 1000)])
    assert payload(1, 1000) == ring.reader.read()


def test_a_record_of_half_the_ring_always_fits_when_all_was_read() -> None:
    """
    The longest record goes in from every place where the cursors can be.
    """
    ring = make_ring(4096)
    longest = payload(7, ring.writer.max_payload)
    for number in range(200):
        short = payload(number, number % 300)
        assert ring.writer.push([short])
        assert short == ring.reader.read()
        assert ring.writer.push([longest])
        assert longest == ring.reader.read()


def test_a_record_that_can_never_fit_is_an_error() -> None:
    """
    Waiting for room would not help: the writer says so, and goes on.
    """
    ring = make_ring(4096)

    with pytest.raises(RingError, match="length: expected up to 2016 bytes, got 2017"):
        ring.writer.push([bytes(2017)])

    assert ring.writer.push([b"next"])
    assert b"next" == ring.reader.read()


def test_acknowledgements_come_back() -> None:
    """
    The writer hears how many records were done with, and how many were refused.
    """
    ring = make_ring()
    for number in range(3):
        ring.writer.push([payload(number, 8)])

    assert 0 == ring.writer.take_acknowledged()
    ring.reader.acknowledge(2, 1)

    assert 2 == ring.writer.take_acknowledged()
    assert 0 == ring.writer.take_acknowledged()
    assert 1 == ring.writer.n_refused


def test_a_sleeping_reader_is_woken_once() -> None:
    """
    One wake-up is asked for each sleep, not one for each record.
    """
    ring = make_ring()

    assert not ring.writer.wake()
    ring.reader.sleep()
    assert [True, False] == [ring.writer.wake(), ring.writer.wake()]
    assert not ring.writer.is_given_up
    ring.reader.give_up()
    assert ring.writer.is_given_up


def test_memory_is_sealed() -> None:
    """
    Neither side can shorten or lengthen what the other has mapped.
    """
    fd, _, _ = create(4096)

    for n_bytes in (0, 4096, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, n_bytes)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(fd)


def test_memory_that_is_not_sealed_is_not_mapped() -> None:
    """
    An engine refuses memory that could be taken away from under it.
    """
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, HEADER_BYTES + 4096)

    with pytest.raises(RingError, match="expected seals"):
        map_sealed(fd, 4096)
    os.close(fd)


def test_memory_of_another_size_is_not_mapped() -> None:
    """
    An engine refuses sealed memory that is shorter or longer than it was told.
    """
    fd, _, _ = create(4096)

    for capacity in (4032, 4160, 0, 100, 1 << 40):
        with pytest.raises(RingError, match="expected"):
            map_sealed(fd, capacity)
    assert isinstance(map_sealed(fd, 4096), mmap.mmap)
    os.close(fd)


def test_what_is_no_memory_is_not_mapped() -> None:
    """
    An engine refuses a descriptor of something else.
    """
    reading, writing = os.pipe()

    with pytest.raises(RingError, match="expected sealed memory"):
        map_sealed(reading, 4096)
    os.close(reading)
    os.close(writing)


def test_a_writer_refuses_a_ring_that_it_was_not_told_of() -> None:
    """
    Another id, as an older ring has, or another capacity is no ring of ours.
    """
    fd, memory, ring_id = create(4096)
    os.close(fd)

    with pytest.raises(RingError, match="header"):
        RingWriter(memory, capacity=4096, ring_id=ring_id ^ 1)
    with pytest.raises(RingError, match="header"):
        RingWriter(memory, capacity=4160, ring_id=ring_id)


def test_the_checksum_is_of_words_sequence_and_length() -> None:
    """
    The sum is that of Python's integers, modulo 2^64, and differs with each of them.
    """
    words = np.array([1, 2**64 - 1, 5], dtype=np.uint64)

    plain = (
        1 + 2**64 - 1 + 5 + 7 * 0x9E3779B97F4A7C15 + 24 * 0xC2B2AE3D27D4EB4F
    ) % 2**64
    assert plain == checksum(words, 7, 24)
    assert 4 == len(
        {
            checksum(words, 7, 24),
            checksum(words, 8, 24),
            checksum(words, 7, 23),
            checksum(words[:2], 7, 24),
        }
    )


def test_an_empty_ring_begins_anew() -> None:
    """
    A reader that keeps up has the writer stay where the caches are, and in order.
    """
    ring = make_ring(8 << 20)
    places = set()
    for number in range(100):
        record = payload(number, 100_000)
        assert ring.writer.push([record])
        assert record == ring.reader.read()
        places.add(ring.words[WRITTEN] % (8 << 20))

    assert max(places) < 2 << 20
