"""Rings whose two sides are in this process."""

import mmap
import os
from dataclasses import dataclass

from service.ring.layout import HEADER_BYTES, RECORD_HEADER_BYTES
from service.ring.memory import create
from service.ring.reader import RingReader
from service.ring.writer import RingWriter


@dataclass
class Ring:
    """A ring's memory, and both who use it."""

    memory: mmap.mmap
    reader: RingReader
    writer: RingWriter

    @property
    def words(self) -> memoryview:
        """The memory as words, for whoever wants to spoil it."""
        return memoryview(self.memory).cast("Q")

    def spoil(self, at: int) -> None:
        """Change the byte *at* of the first record's payload."""
        where = HEADER_BYTES + RECORD_HEADER_BYTES + at
        self.memory[where] ^= 0xFF


def make_ring(capacity: int = 4096) -> Ring:
    """Return a new ring."""
    fd, memory, ring_id = create(capacity)
    os.close(fd)
    return Ring(
        memory=memory,
        reader=RingReader(memory, capacity=capacity, ring_id=ring_id),
        writer=RingWriter(memory, capacity=capacity, ring_id=ring_id),
    )


def payload(number: int, n_bytes: int) -> bytes:
    """Bytes that no other number has."""
    word = (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little")
    return (word * (n_bytes // 8 + 1))[:n_bytes]
