"""A ring whose other side is broken, or means harm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ring.layout import (
    ACKNOWLEDGED,
    HEADER_BYTES,
    READ,
    RECORD_HEADER_BYTES,
    SKIP,
    WRITTEN,
    RingError,
    checksum,
)
from tests.ring.builders import Ring, make_ring, payload

FIRST = HEADER_BYTES // 8  # Words of the first record: sequence, length, checksum.


def forge(ring: Ring, *, sequence: int, n_payload: int) -> None:
    """Write a first record's header with a checksum that fits it."""
    words = np.frombuffer(ring.memory, dtype="<u8")
    first = FIRST + RECORD_HEADER_BYTES // 8
    n_words = min(-(-n_payload // 8), len(words) - first)
    summed = checksum(words[first : first + n_words], sequence, n_payload)
    ring.words[FIRST] = sequence
    ring.words[FIRST + 1] = n_payload
    ring.words[FIRST + 2] = summed


@pytest.mark.parametrize("n_payload", [2017, 4096, 1 << 20, 1 << 63, SKIP, SKIP - 1])
def test_a_length_beyond_the_ring_is_refused(n_payload: int) -> None:
    """
    However long a record says it is, nothing outside the ring is read.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 100)])
    forge(ring, sequence=1, n_payload=n_payload)

    with pytest.raises(RingError, match="length"):
        ring.reader.read()


def test_a_length_beyond_what_was_written_is_refused() -> None:
    """
    A record cannot reach into bytes that its writer has not written yet.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 100)])
    forge(ring, sequence=1, n_payload=1000)

    with pytest.raises(RingError, match="length"):
        ring.reader.read()


@pytest.mark.parametrize(
    "cursor", [0, 64, 4096 + 192 + 64, 1 << 40, (1 << 64) - 64, 320 + 1, 321]
)
def test_a_cursor_that_jumps_is_refused(cursor: int) -> None:
    """
    Backwards, further than the ring is long, or between two records' places.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 100)])
    assert ring.reader.read() is not None
    ring.writer.push([payload(1, 100)])

    ring.words[WRITTEN] = cursor

    with pytest.raises(RingError, match="cursor"):
        ring.reader.read()


def test_a_cursor_ahead_of_the_records_is_refused() -> None:
    """
    What lies there was never written, or is a lap old: its sequence shows it.
    """
    ring = make_ring()
    ring.words[WRITTEN] = 512

    with pytest.raises(RingError, match="sequence: expected record 1, got 0"):
        ring.reader.read()


@pytest.mark.parametrize("sequence", [0, 2, 1 << 63, (1 << 64) - 1])
def test_a_sequence_that_jumps_is_refused(sequence: int) -> None:
    """
    A record that is not the next one is none, even if its checksum fits.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 100)])
    forge(ring, sequence=sequence, n_payload=100)

    with pytest.raises(RingError, match="sequence"):
        ring.reader.read()


@pytest.mark.parametrize("at", [0, 1, 50, 99])
def test_a_torn_record_is_refused(at: int) -> None:
    """
    One byte that is not what was written is found, wherever it is.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 100)])
    ring.spoil(at)

    with pytest.raises(RingError, match="checksum"):
        ring.reader.read()


def test_half_of_a_record_is_refused() -> None:
    """
    A record whose second half is still the lap's before is found.
    """
    ring = make_ring()
    for number in range(4):
        ring.writer.push([payload(number, 992)])
        ring.reader.read()
    ring.writer.push([payload(4, 992)])
    half = HEADER_BYTES + RECORD_HEADER_BYTES + 496
    ring.memory[half : half + 496] = payload(0, 496)

    with pytest.raises(RingError, match="checksum"):
        ring.reader.read()


def test_a_header_that_was_written_over_is_refused() -> None:
    """
    Magic, version, capacity and id are what this side wrote, or the ring is over.
    """
    for word in range(4):
        ring = make_ring()
        ring.writer.push([b"x"])
        ring.words[word] ^= 1

        with pytest.raises(RingError, match="header"):
            ring.reader.read()


def test_skips_without_a_record_are_refused() -> None:
    """
    A writer that only ever skips cannot keep the reader going round.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 1000)])
    ring.reader.read()
    at = FIRST + 1088 // 8
    ring.words[at] = 2
    ring.words[at + 1] = SKIP
    ring.words[at + 2] = checksum(np.zeros(0, np.uint64), 2, SKIP)
    ring.words[WRITTEN] = 4096

    with pytest.raises(RingError, match="behind the skipped rest"):
        ring.reader.read()
    ring = make_ring()
    forge(ring, sequence=1, n_payload=SKIP)
    ring.words[WRITTEN] = 4096
    with pytest.raises(RingError, match="length"):
        ring.reader.read()


def test_an_error_is_for_good() -> None:
    """
    After an error nothing is believed any more, even if the memory is mended.
    """
    ring = make_ring()
    ring.writer.push([payload(0, 100)])
    ring.spoil(5)
    with pytest.raises(RingError):
        ring.reader.read()
    ring.spoil(5)

    with pytest.raises(RingError, match="checksum"):
        ring.reader.read()


def test_the_reader_does_not_read_its_own_words_back() -> None:
    """
    A writer that changes the read cursor changes nothing of what is read.
    """
    ring = make_ring()
    for number in range(3):
        ring.writer.push([payload(number, 100)])
    found = [ring.reader.read()]
    ring.words[READ] = 1 << 50
    ring.words[ACKNOWLEDGED] = 77
    found += [ring.reader.read(), ring.reader.read()]

    assert [payload(n, 100) for n in range(3)] == found


@pytest.mark.parametrize("cursor", [64, 1 << 40, (1 << 64) - 1])
def test_a_writer_does_not_believe_a_read_cursor_that_cannot_be(cursor: int) -> None:
    """
    The daemon may be broken too: what it has not got to is not written over.
    """
    ring = make_ring()
    ring.words[READ] = cursor

    with pytest.raises(RingError, match="cursor"):
        ring.writer.push([b"x"])


def test_a_writer_does_not_believe_acknowledgements_that_cannot_be() -> None:
    """
    More than was written, or fewer than before, are acknowledged by nobody.
    """
    ring = make_ring()
    ring.writer.push([b"x"])
    ring.reader.acknowledge(2, 0)
    with pytest.raises(RingError, match="expected 0 to 1 acknowledged, got 2"):
        ring.writer.take_acknowledged()
    ring.reader.acknowledge(1, 0)
    assert 1 == ring.writer.take_acknowledged()
    ring.reader.acknowledge(0, 0)
    with pytest.raises(RingError, match="expected 1 to 1 acknowledged, got 0"):
        ring.writer.take_acknowledged()


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 2016),
            st.just("read"),
            st.tuples(st.integers(0, HEADER_BYTES + 4095), st.integers(1, 255)),
            st.tuples(
                st.sampled_from([*range(0, 400, 8), *range(4096, 4224)]),
                st.integers(1, 255),
            ),
        ),
        max_size=60,
    )
)
def test_flipped_bytes_never_become_a_record(
    actions: list[int | str | tuple[int, int]],
) -> None:
    """
    Whichever bytes change under both sides, each raises its own error or goes on,
    and what is read was pushed: the next that was, or nothing.
    """
    ring = make_ring(4096)
    taken: list[bytes] = []
    found: list[bytes] = []
    for number, action in enumerate([*actions, *["read"] * 20]):
        try:
            if isinstance(action, int):
                record = payload(number, action)
                if ring.writer.push([record]):
                    taken.append(record)
            elif isinstance(action, tuple):
                ring.memory[action[0]] ^= action[1]
            elif (read := ring.reader.read()) is not None:
                found.append(read)
        except RingError:
            continue

    assert taken[: len(found)] == found
