"""Takes records out of a ring, on the daemon's side."""

# Rule 1: the writer's process is not trusted. It can change any byte at any moment:
# a word is read once, checked, and then used; a record is copied out before anything
# in it is looked at; what this side wrote itself is never read back.
#
# Rule 2: whatever is in the memory, what leaves is a record that fits its header, or
# RingError. After a RingError there is nothing more to be had from the ring.

import mmap
import time

import numpy as np

from service.ring.layout import (
    ACKNOWLEDGED,
    ALIGNMENT,
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

_LOOKS = 4
_LOOK_AGAIN_SECONDS = 0.001


class RingReader:
    """The one reader of the ring in *memory*, which this side has made."""

    def __init__(self, memory: mmap.mmap, *, capacity: int, ring_id: int) -> None:
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")
        self._header = np.array(header(capacity, ring_id), dtype="<u8").tobytes()
        self._capacity = capacity
        self._read = 0
        self._sequence = 0
        self._error: RingError | None = None

    @property
    def sequence(self) -> int:
        """Of the last record that was read."""
        return self._sequence

    def read(self) -> bytes | None:
        """
        Return the next record, or None when there is none.

        Raises:
            RingError: The memory does not hold what it must. It does so ever after.
        """
        if self._error is not None:
            raise self._error
        for look in range(1, _LOOKS + 1):
            try:
                return self._look()
            except RingError as error:
                # Where stores are seen out of order, the next look sees them all.
                if look == _LOOKS:
                    self._error = error
                    raise
                time.sleep(_LOOK_AGAIN_SECONDS)
        raise AssertionError

    def has_next(self) -> bool:
        """Whether a record waits, or something that is none."""
        return bool(self._words[WRITTEN] != self._read)

    def sleep(self) -> None:
        """Ask the writer to wake us; `has_next` has to be asked again after it."""
        self._words[IS_ASLEEP] = 1

    def awake(self) -> None:
        """Ask it for that no more."""
        self._words[IS_ASLEEP] = 0

    def acknowledge(self, sequence: int, n_refused: int) -> None:
        """Tell the writer that records up to *sequence* are done with. Any thread."""
        self._words[REFUSED] = n_refused
        self._words[ACKNOWLEDGED] = sequence

    def give_up(self) -> None:
        """Tell the writer that the ring is broken, and no more of it is read."""
        self._words[IS_GIVEN_UP] = 1

    def _look(self) -> bytes | None:
        written = self._words[WRITTEN]
        if written == self._read:
            return None
        if self._bytes[: len(self._header)] != self._header:
            raise RingError("header", "it is not that of the ring that was made")
        n_unread = written - self._read
        if not 0 < n_unread <= self._capacity or written % ALIGNMENT:
            raise RingError(
                "cursor",
                f"expected up to {self._capacity} bytes after {self._read}, "
                f"got {written}",
            )
        at = self._read % self._capacity
        n_payload, expected = self._record(at)
        skipped = 0
        if n_payload == SKIP and at:
            self._check(b"", SKIP, expected)
            skipped, at = self._capacity - at, 0
            if n_unread <= skipped:
                raise RingError("cursor", "expected a record behind the skipped rest")
            n_payload, expected = self._record(at)
        n_bytes = record_bytes(n_payload)
        if n_payload > max_payload(self._capacity) or skipped + n_bytes > n_unread:
            raise RingError(
                "length",
                f"expected a record within the {n_unread - skipped} bytes written, "
                f"got {n_payload}",
            )
        start = HEADER_BYTES + at + RECORD_HEADER_BYTES
        padded = bytes(self._bytes[start : start + -(-n_payload // 8) * 8])
        self._check(padded, n_payload, expected)
        self._sequence += 1
        self._read += skipped + n_bytes
        self._words[READ] = self._read
        return padded if len(padded) == n_payload else padded[:n_payload]

    def _record(self, at: int) -> tuple[int, int]:
        """Return length and checksum of the record *at*, unchecked but for its turn."""
        word = (HEADER_BYTES + at) // 8
        sequence, n_payload, expected = self._words[word : word + 3].tolist()
        if sequence != self._sequence + 1:
            raise RingError(
                "sequence", f"expected record {self._sequence + 1}, got {sequence}"
            )
        return n_payload, expected

    def _check(self, padded: bytes, n_payload: int, expected: int) -> None:
        words = np.frombuffer(padded, dtype="<u8")
        if checksum(words, self._sequence + 1, n_payload) != expected:
            raise RingError(
                "checksum", f"record {self._sequence + 1} is not what was written"
            )
