"""Puts records into a ring, on the engine's side. One thread at a time."""

# Rule: nothing here waits, and nothing takes memory by the size of a record. A full
# ring is a False; whether something is then lost is the caller's to say.

import mmap
from collections.abc import Sequence

import numpy as np

from service.ring.layout import (
    ACKNOWLEDGED,
    HEADER_BYTES,
    IS_ASLEEP,
    IS_GIVEN_UP,
    READ,
    RECORD_HEADER_BYTES,
    REFUSED,
    SKIP,
    WRITTEN,
    RingError,
    checksum,
    header,
    max_payload,
    record_bytes,
)

_WARM_BYTES = 1 << 20  # A common second-level cache.

Part = bytes | bytearray | memoryview


class RingWriter:
    """
    The one writer of the ring in *memory*.

    Attributes:
        sequence: Of the last record; the first is 1.

        n_full: Records that found no room.

    Raises:
        RingError: The memory is not the ring that was told.
    """

    def __init__(self, memory: mmap.mmap, *, capacity: int, ring_id: int) -> None:
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._array = np.frombuffer(memory, dtype="<u8")
        expected = header(capacity, ring_id)
        if len(memory) != HEADER_BYTES + capacity or any(
            self._words[i] != word for i, word in enumerate(expected)
        ):
            raise RingError("header", "it is not that of the ring that was told")
        self._capacity = capacity
        self._written = 0
        self._n_acknowledged = 0
        self.sequence = 0
        self.n_full = 0

    @property
    def max_payload(self) -> int:
        """The longest record, in bytes."""
        return max_payload(self._capacity)

    @property
    def is_given_up(self) -> bool:
        """Whether the reader has found it broken, and reads no more."""
        return bool(self._words[IS_GIVEN_UP])

    @property
    def n_refused(self) -> int:
        """Records of which the reader's side could not take what they said."""
        return self._words[REFUSED]

    def push(self, parts: Sequence[Part]) -> bool:
        """
        Write one record, *parts* behind each other, unless the ring is full.

        Raises:
            RingError: It is longer than `max_payload`, or the reader's cursor is where
                it cannot be. Nothing was written.
        """
        n_payload = sum(map(len, parts))
        if n_payload > self.max_payload:
            raise RingError(
                "length", f"expected up to {self.max_payload} bytes, got {n_payload}"
            )
        n_bytes = record_bytes(n_payload)
        at = self._written % self._capacity
        rest = self._capacity - at
        n_unread = self._n_unread()
        # With nothing unread it begins anew, where the caches still are.
        is_cold = not n_unread and at > _WARM_BYTES and n_bytes <= at
        skipped = rest if n_bytes > rest or is_cold else 0
        if n_unread + skipped + n_bytes > self._capacity:
            self.n_full += 1
            return False
        if skipped:
            self._seal(at, SKIP)
            at = 0
        self._fill(HEADER_BYTES + at + RECORD_HEADER_BYTES, parts)
        self._seal(at, n_payload)
        self.sequence += 1
        self._written += skipped + n_bytes
        self._words[WRITTEN] = self._written
        return True

    def wake(self) -> bool:
        """
        Return whether the reader sleeps and has to be woken; asked once, it is awake.
        """
        if not self._words[IS_ASLEEP]:
            return False
        self._words[IS_ASLEEP] = 0
        return True

    def take_acknowledged(self) -> int:
        """
        Return how many more records were acknowledged since this was last called.

        Raises:
            RingError: More than were written, or fewer than before.
        """
        now = self._words[ACKNOWLEDGED]
        if not self._n_acknowledged <= now <= self.sequence:
            raise RingError(
                "sequence",
                f"expected {self._n_acknowledged} to {self.sequence} acknowledged, "
                f"got {now}",
            )
        n_new = now - self._n_acknowledged
        self._n_acknowledged = now
        return n_new

    def _n_unread(self) -> int:
        n_unread = self._written - self._words[READ]
        if not 0 <= n_unread <= self._capacity:
            raise RingError(
                "cursor",
                f"expected up to {self._capacity} bytes unread, got {n_unread}",
            )
        return n_unread

    def _fill(self, start: int, parts: Sequence[Part]) -> None:
        for part in parts:
            self._bytes[start : start + len(part)] = part
            start += len(part)
        n_over = start % 8
        if n_over:
            self._bytes[start : start + 8 - n_over] = bytes(8 - n_over)

    def _seal(self, at: int, n_payload: int) -> None:
        word = (HEADER_BYTES + at) // 8
        first = word + RECORD_HEADER_BYTES // 8
        n_words = 0 if n_payload == SKIP else -(-n_payload // 8)
        sequence = self.sequence + 1
        self._words[word + 1] = n_payload
        self._words[word + 2] = checksum(
            self._array[first : first + n_words], sequence, n_payload
        )
        self._words[word] = sequence
