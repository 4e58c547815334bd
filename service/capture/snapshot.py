"""Copies a step's rows out of the buffers before the next step overwrites them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.capture.arena import Arena, Piece
from service.capture.held_copies import copy_blocks, copy_items
from service.capture.step import Shape, Step, row_bytes
from service.capture.tap import TapBuffers


class Snapshooter:
    """
    Takes snapshots; on CUDA on a stream of its own, without waiting.

    Args:
        buffers: What the taps write.

        arena: Where snapshots go; pinned if the buffers are on a device.
    """

    def __init__(self, buffers: TapBuffers, arena: Arena) -> None:
        self._buffers = buffers
        self._arena = arena
        self._n_sites = buffers.values.shape[0]
        is_cuda = buffers.values.is_cuda
        self._stream = torch.cuda.Stream() if is_cuda else None
        self._memory = arena.array.data
        self._values = None if is_cuda else buffers.values.numpy()
        self._ids, self._slots = _LastView(), _LastView()
        # Bytes of each hook point: to copy some is cheaper than any array.
        self._value_bytes = [] if is_cuda else _bytes_of(buffers.values)
        self._norm_bytes = [] if is_cuda else _bytes_of(buffers.squared_norms)

    def reserve(self, n_rows: int, width: int) -> Piece | None:
        """Return memory for a step's rows, *width* values each; None without room."""
        return self._arena.take(row_bytes(self._n_sites, width) * n_rows)

    def take_into(
        self,
        step: Step,
        token_ids: torch.Tensor,
        slots: torch.Tensor | None,
        width: int,
    ) -> None:
        """
        Copy *step*'s rows into its piece, *width* values each.

        With those of *token_ids* and *slots*, of shape (n_rows_expected,). On CUDA
        they are there when *step.copied* is complete.

        Raises:
            ValueError: The piece is not for so many, or there are fewer ids.
        """
        piece, n = step.piece, step.n_rows_expected
        shape = Shape(self._n_sites, n, width, slots is not None)
        if piece is None or shape.n_bytes > piece.n_bytes:
            has = 0 if piece is None else piece.n_bytes
            raise ValueError(f"rows: expected {has} bytes of them, got {shape.n_bytes}")
        step.shape = shape
        if self._values is None:
            self._copy_from_device(step, piece, token_ids, slots)
            return
        at = piece.start
        if width == self._values.shape[2]:
            at = self._copy_bytes(at, self._value_bytes, 4 * n * width)
        else:
            values = piece.array(0, (self._n_sites, n, width), np.float32)
            copy_blocks(values, self._values)
            at += values.nbytes
        at = self._copy_bytes(at, self._norm_bytes, 4 * n)
        self._copy_ids(at, n, self._ids.of(token_ids, n))
        if slots is not None:
            self._copy_ids(at + 4 * n, n, self._slots.of(slots, n))

    def _copy_bytes(self, at: int, sources: list[memoryview], n_bytes: int) -> int:
        for source in sources:
            self._memory[at : at + n_bytes] = source[:n_bytes]
            at += n_bytes
        return at

    def _copy_ids(self, at: int, n: int, ids: NDArray[Any]) -> None:
        _expect(n, len(ids))
        copy_items(np.ndarray(n, np.int32, self._arena.array, at), ids)

    def _copy_from_device(
        self,
        step: Step,
        piece: Piece,
        token_ids: torch.Tensor,
        slots: torch.Tensor | None,
    ) -> None:
        assert self._stream is not None
        assert step.shape is not None
        _, n, width, _ = step.shape
        for ids in (token_ids, slots):
            if ids is not None:
                _expect(n, ids.shape[0])
        # On the main stream, so that the next step, queued behind, cannot overwrite
        # what the side stream still reads.
        copies = [
            self._buffers.values[:, :n, :width].clone(
                memory_format=torch.contiguous_format
            ),
            self._buffers.squared_norms[:, :n].clone(
                memory_format=torch.contiguous_format
            ),
            token_ids.to(torch.int32, copy=True),
        ]
        if slots is not None:
            copies.append(slots.to(torch.int32, copy=True))
        self._stream.wait_stream(torch.cuda.current_stream())
        at = piece.start
        with torch.cuda.stream(self._stream):
            for tensor in copies:
                host = self._arena.tensor[at : at + tensor.nbytes].view(tensor.dtype)
                host.view(tensor.shape).copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
                at += tensor.nbytes
            copied = torch.cuda.Event()
            copied.record(self._stream)
        step.copied = copied


class _LastView:
    """
    The first elements of a buffer that is the same in every step, as numpy has them.

    Making the view anew takes longer than copying what is in it, and gives other
    threads the interpreter.
    """

    def __init__(self) -> None:
        self._view: NDArray[Any] = np.empty(0)
        self._key: tuple[int, torch.dtype] | None = None

    def of(self, tensor: torch.Tensor, n: int) -> NDArray[Any]:
        """Return the *n* elements of *tensor*, which has one axis."""
        # The view holds on to the memory: nothing else can come to lie there.
        key = (tensor.data_ptr(), tensor.dtype)
        if key != self._key or n > len(self._view):
            self._key, self._view = key, tensor.numpy()
        return self._view[:n]


def _expect(n_rows: int, n_ids: int) -> None:
    if n_ids != n_rows:
        raise ValueError(f"rows: expected {n_rows} token ids or slots, got {n_ids}")


def _bytes_of(buffer: torch.Tensor) -> list[memoryview]:
    """Return the memory of each hook point; *buffer* is of shape (n_sites, ...)."""
    return [site.data.cast("B") for site in buffer.numpy()]
