# n_message (u64), n_arrays (u64), length of each array (u64), message, arrays
#
# A batch's arrays are left out of its message and follow it, in `put_arrays`' order:
# protobuf would copy them twice more, on the engine's thread.
"""A stream's request as a record of the ring: its message, and the arrays behind it."""

import struct
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import WireError

_WORD_BYTES = 8


def put_arrays(batch: pb.StepBatch, arrays: Sequence[bytes]) -> None:
    """
    Write *arrays* into *batch*: token ids, slots, then values and norms by hook point.

    Raises:
        WireError: They are not as many as that.
    """
    n_expected = 2 + 2 * len(batch.hook_points)
    if len(arrays) != n_expected:
        raise WireError(f"record: expected {n_expected} arrays, got {len(arrays)}")
    batch.token_ids, batch.slots = arrays[:2]
    pairs = zip(arrays[2::2], arrays[3::2], strict=True)
    for rows, (values, norms) in zip(batch.hook_points, pairs, strict=True):
        rows.values, rows.squared_norms = values, norms


def record_parts(
    request: pb.StreamRequest, arrays: Sequence[NDArray[np.generic]]
) -> list[bytes | memoryview]:
    """Return what a record is put together from; *arrays* are viewed, not copied."""
    message = request.SerializeToString()
    views = [np.ascontiguousarray(a).data.cast("B") if a.size else b"" for a in arrays]
    lengths = [len(message), len(views), *map(len, views)]
    return [struct.pack(f"<{len(lengths)}Q", *lengths), message, *views]


def request_from_record(record: bytes) -> pb.StreamRequest:
    """
    Return the request that a record holds.

    Raises:
        WireError: It holds none, or one whose arrays do not fit it.
    """
    if len(record) < 2 * _WORD_BYTES:
        raise WireError(f"record: expected a message, got {len(record)} bytes")
    n_message, n_arrays = struct.unpack_from("<2Q", record)
    at = (2 + n_arrays) * _WORD_BYTES
    if at > len(record):
        raise WireError(f"record: expected fewer arrays, got {n_arrays}")
    lengths = struct.unpack_from(f"<{n_arrays}Q", record, 2 * _WORD_BYTES)
    if at + n_message + sum(lengths) != len(record):
        raise WireError(f"record: expected parts of {len(record)} bytes in all")
    try:
        request = pb.StreamRequest.FromString(record[at : at + n_message])
    except DecodeError as error:
        raise WireError(f"record: expected a message: {error}") from error
    if not n_arrays:
        return request
    if request.WhichOneof("payload") != "batch":
        raise WireError("record: expected arrays with a batch only")
    at += n_message
    arrays = []
    for length in lengths:
        arrays.append(record[at : at + length])
        at += length
    put_arrays(request.batch, arrays)
    return request
