"""Makes the memory of a ring, and maps one that somebody else made."""

import errno
import fcntl
import mmap
import os
import secrets
import time

from service.ring.layout import (
    ALIGNMENT,
    HEADER_BYTES,
    MAX_RING_BYTES,
    RingError,
    check_byte_order,
    header,
)

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; Python has no name for it.
_POPULATE_BYTES = 1 << 20


def create(capacity: int) -> tuple[int, mmap.mmap, int]:
    """
    Make memory for *capacity* bytes of records, a multiple of 64.

    Its size is sealed: who gets it cannot shorten it, and have the other side die of
    SIGBUS.

    Returns:
        File descriptor, mapping and the ring's random id. The descriptor is the
        caller's to close; the mapping does not need it.

    Raises:
        RingError: There is no memory.
    """
    check_byte_order()
    assert capacity % ALIGNMENT == 0
    ring_id = secrets.randbits(64)
    fd = -1
    try:
        fd = os.memfd_create("innerwatch-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, HEADER_BYTES + capacity)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        memory = mmap.mmap(fd, HEADER_BYTES + capacity)
        _populate(memory)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise RingError("memory", f"{capacity} bytes: {error.strerror}") from error
    words = memoryview(memory).cast("Q")
    for index, word in enumerate(header(capacity, ring_id)):
        words[index] = word
    return fd, memory, ring_id


def map_sealed(fd: int, capacity: int) -> mmap.mmap:
    """
    Map the ring behind *fd*, as it was handed over.

    Raises:
        RingError: It is not sealed, or not of the size that was told: whoever made it
            could take it away from under us.
    """
    check_byte_order()
    if not (0 < capacity <= MAX_RING_BYTES and capacity % ALIGNMENT == 0):
        raise RingError("memory", f"expected a capacity that can be, got {capacity}")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        n_bytes = os.fstat(fd).st_size
    except OSError as error:
        raise RingError(
            "memory", f"expected sealed memory: {error.strerror}"
        ) from error
    if seals & _SEALS != _SEALS:
        raise RingError("memory", f"expected seals {_SEALS:#x}, got {seals:#x}")
    if n_bytes != HEADER_BYTES + capacity:
        raise RingError(
            "memory", f"expected {HEADER_BYTES + capacity} bytes, got {n_bytes}"
        )
    try:
        memory = mmap.mmap(fd, n_bytes)
        _populate(memory)
    except OSError as error:
        raise RingError("memory", f"it can not be mapped: {error.strerror}") from error
    return memory


def _populate(memory: mmap.mmap) -> None:
    # Page faults now, and not while a step waits; memory that is not there is an
    # error now, and not SIGBUS then. In pieces, for the GIL's other waiters.
    for start in range(0, len(memory), _POPULATE_BYTES):
        try:
            memory.madvise(
                _POPULATE_WRITE, start, min(_POPULATE_BYTES, len(memory) - start)
            )
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # An older kernel: the first lap is slower, no more.
            raise
        time.sleep(0)
