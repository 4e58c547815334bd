# Rule 1: numbers are little-endian 64-bit words, and each cursor is written by one
# side only. What the other side writes is checked before it is used.
#
# Rule 2: of a record the sequence word is written last, and then the write cursor.
# Python has no atomics: an aligned 8-byte word through memoryview.cast("Q") is one
# store, and x86-64 keeps the order of stores (TSO). ARM does not: there a record can
# be seen before all of it is, its sequence or its checksum then does not fit, and
# the reader looks again.
#
#     0    magic, version, capacity, ring id         written once, by the reader's side
#     128  write cursor                              the writer's line
#     256  read cursor, acknowledged, refused        the reader's line
#     384  the reader sleeps; it has given up        changes seldom, read at each push
#     4096 records: sequence, length, checksum, 0, payload; from multiples of 64
#
# A cursor counts bytes from the beginning and never goes back; it is at itself modulo
# the capacity. A record does not wrap: where it would, a header with the length SKIP
# says that the rest is empty.
"""Where everything lies in a ring's memory."""

import sys
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAGIC = int.from_bytes(b"iw-ring\x00", "little")
VERSION = 1

HEADER_BYTES = 4096
RECORD_HEADER_BYTES = 32
ALIGNMENT = 64
MAX_RING_BYTES = 1 << 32

# Indices of words. Two cache lines apart: x86 fetches lines in pairs.
WRITTEN = 16
READ, ACKNOWLEDGED, REFUSED = 32, 33, 34
IS_ASLEEP, IS_GIVEN_UP = 48, 49

SKIP = (1 << 64) - 1
_WORD = 1 << 64

Fault = Literal["memory", "header", "cursor", "sequence", "length", "checksum"]


class RingError(ValueError):
    """
    The memory does not hold what it must: nothing more can be read or written.

    Attributes:
        fault: Which part of it, one of few words.
    """

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(f"ring {fault}: {text}")
        self.fault: Fault = fault


def check_byte_order() -> None:
    """Raise `RingError` on a machine whose words are not little-endian."""
    if sys.byteorder != "little":
        raise RingError("memory", "expected a little-endian machine, got a big-endian")


def header(capacity: int, ring_id: int) -> tuple[int, int, int, int]:
    """Return the words that a ring's memory begins with."""
    return MAGIC, VERSION, capacity, ring_id


def record_bytes(n_payload: int) -> int:
    """Return what a record of *n_payload* bytes takes in the ring."""
    return -(-(RECORD_HEADER_BYTES + n_payload) // ALIGNMENT) * ALIGNMENT


def max_payload(capacity: int) -> int:
    """Return the longest payload that always fits in once everything was read."""
    return capacity // 2 // ALIGNMENT * ALIGNMENT - RECORD_HEADER_BYTES


def checksum(words: NDArray[np.uint64], sequence: int, n_payload: int) -> int:
    """
    Sum up a payload's 64-bit words, with its sequence number and length.

    Modulo 2^64; the last word is filled up with zeros. A CRC would take most of a
    core at 2 GB/s (zlib's: 85 us for 256 KiB, this one 6 us; 2026-11-23). Found are
    records that were torn, cut off, or left from the lap before, unless the words
    that differ happen to cancel out. Not found are words that changed places, nor
    what somebody forges: the peer's user id is what keeps those out.
    """
    total = int(np.add.reduce(words)) if len(words) else 0
    # Odd multipliers, so that no two neighbouring sequences or lengths are alike.
    seed = sequence * 0x9E3779B97F4A7C15 + n_payload * 0xC2B2AE3D27D4EB4F
    return (total + seed) % _WORD
