"""Memory for what waits to be sent: taken at start, so that a push takes none.

A daemon that is gone must not cost the engine page faults, nor pinning, nor find out in
an incident that the host has no memory left.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 64  # Bytes; a cache line.


class Arena:
    """
    Gives out pieces of one block, which have to come back in the order they went.

    One thread takes, another may give back: each changes a count of its own.

    Args:
        n_bytes: Size of the block, rounded up to a cache line.

        pin_memory: Whether a device copies into it.

    Attributes:
        array: All of it, uint8 of shape (size,).

        tensor: The same memory.
    """

    def __init__(self, n_bytes: int, *, pin_memory: bool) -> None:
        self._size = _aligned(n_bytes)
        self.tensor = torch.empty(
            self._size, dtype=torch.uint8, pin_memory=pin_memory
        ).fill_(0)  # Each page is there from now on.
        self.array: NDArray[np.uint8] = self.tensor.numpy()
        # Both only rise; what lies between them is out.
        self._n_taken = self._n_back = 0

    def take(self, n_bytes: int) -> "Piece | None":
        """Return the next *n_bytes*, whatever they held before; None without room."""
        taken, back, size = self._n_taken, self._n_back, self._size
        if taken == back:
            # All is back, so nobody else counts: begin again where caches are warm.
            taken = back = self._n_taken = self._n_back = 0
        n_held = _aligned(n_bytes)
        start = taken % size
        if start + n_held > size:
            n_held += size - start  # In one piece, from the block's first byte on.
            start = 0
        if taken + n_held - back > size:
            return None
        self._n_taken = taken + n_held
        return Piece(self, start, n_bytes, n_held)

    def _give_back(self, n_held: int) -> None:
        self._n_back += n_held


class Piece:
    """
    Some bytes of an arena, which counts *n_held* for them.

    Attributes:
        start: Where it begins in the arena.

        n_bytes: How long it is.
    """

    __slots__ = ("_arena", "_n_held", "n_bytes", "start")

    def __init__(self, arena: Arena, start: int, n_bytes: int, n_held: int) -> None:
        self._arena, self._n_held = arena, n_held
        self.start, self.n_bytes = start, n_bytes

    def array(
        self, start: int, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> NDArray[Any]:
        """Return the piece's memory from its byte *start* on as an array."""
        return np.ndarray(shape, dtype, self._arena.array, self.start + start)

    def give_back(self) -> None:
        """Let the arena have it again: nobody reads or writes it any more."""
        self._arena._give_back(self._n_held)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
