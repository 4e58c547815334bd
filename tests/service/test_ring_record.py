"""A message and its arrays, as one record and back."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.capture.messages import describe_batch, fill_batch
from service.ring_record import record_parts, request_from_record
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import WireError
from tests.contract.transport_side import step
from tests.monitor.builders import EARLY, LATE


def a_record() -> bytes:
    """A step's."""
    request = pb.StreamRequest(engine="e")
    arrays = describe_batch(request.batch, step(3), (EARLY, LATE))
    return b"".join(record_parts(request, arrays))


def test_a_step_is_the_same_as_by_grpc() -> None:
    """
    What the daemon reads of a record is the message that gRPC would have carried.
    """
    expected = pb.StreamRequest(engine="e")
    sent = step(3)
    fill_batch(expected.batch, sent, (EARLY, LATE))
    found = request_from_record(a_record())
    found.batch.captured_at = expected.batch.captured_at

    assert expected == found


def test_a_message_without_arrays_is_itself() -> None:
    """
    A gap has none, and nor has a batch without rows.
    """
    request = pb.StreamRequest(engine="e", gap=pb.Gap(n_tokens=3))

    assert request == request_from_record(b"".join(record_parts(request, ())))


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (b"", "expected a message"),
        (struct.pack("<2Q", 0, 1 << 60), "expected fewer arrays"),
        (struct.pack("<2Q", 1 << 60, 0), "expected parts of 16 bytes"),
        (struct.pack("<4Q", 0, 2, (1 << 64) - 1, 1), "expected parts"),
        (struct.pack("<2Q", 1, 0) + b"\xff", "expected a message"),
        (struct.pack("<3Q", 0, 1, 0), "arrays with a batch only"),
    ],
)
def test_what_does_not_fit_is_refused(record: bytes, word: str) -> None:
    """
    Lengths are checked before they are used, and one line says what is wrong.
    """
    with pytest.raises(WireError, match=word):
        request_from_record(record)


@given(st.data())
def test_spoilt_records_raise_nothing_else(data: st.DataObject) -> None:
    """
    Whatever bytes a record has, it is a request or a WireError.
    """
    record = bytearray(a_record())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(record) - 1))
        record[at] = data.draw(st.integers(0, 255))
    del record[data.draw(st.integers(0, len(record))) :]

    try:
        request_from_record(bytes(record))
    except WireError:
        return
