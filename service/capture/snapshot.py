"""Copies a step's rows out of the buffers before the next step overwrites them."""

import numpy as np
import torch

from service.capture.arena import Arena, Piece
from service.capture.held_copies import copy_blocks
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
        self._ids, self._slots = _LastBytes(), _LastBytes()
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
            ValueError: The piece, or what the taps write, is not for so many, or there
                are more or fewer ids.
        """
        piece, n = step.piece, step.n_rows_expected
        n_bytes = row_bytes(self._n_sites, width) * n
        if piece is None or n_bytes > piece.n_bytes:
            has = 0 if piece is None else piece.n_bytes
            raise ValueError(f"rows: expected {has} bytes of them, got {n_bytes}")
        for ids in (token_ids, slots):
            if ids is not None and ids.shape[0] != n:
                raise ValueError(f"rows: expected {n} ids or slots, got {len(ids)}")
        if self._values is None:
            self._copy_from_device(step, piece, token_ids, slots, width)
            return
        at = piece.start
        if width == self._values.shape[2]:
            at = self._copy_bytes(at, self._value_bytes, 4 * n * width)
        else:
            values = piece.array(0, (self._n_sites, n, width), np.float32)
            copy_blocks(values, self._values)
            at += values.nbytes
        at = self._copy_bytes(at, self._norm_bytes, 4 * n)
        id_bytes, slot_bytes = token_ids.itemsize, 0
        at = self._copy_bytes(at, [self._ids.of(token_ids)], id_bytes * n)
        if slots is not None:
            slot_bytes = slots.itemsize
            self._copy_bytes(at, [self._slots.of(slots)], slot_bytes * n)
        step.shape = Shape(self._n_sites, n, width, id_bytes, slot_bytes)

    def _copy_bytes(self, at: int, sources: list[memoryview], n_bytes: int) -> int:
        for source in sources:
            self._memory[at : at + n_bytes] = source[:n_bytes]
            at += n_bytes
        return at

    def _copy_from_device(
        self,
        step: Step,
        piece: Piece,
        token_ids: torch.Tensor,
        slots: torch.Tensor | None,
        width: int,
    ) -> None:
        assert self._stream is not None
        n = step.n_rows_expected
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
        step.shape = Shape(self._n_sites, n, width, 4, 0 if slots is None else 4)
        step.copied = copied


class _LastBytes:
    """
    The memory of a buffer that is the same in every step.

    To ask PyTorch and numpy for it takes longer than copying what is in it, and gives
    other threads the interpreter.
    """

    def __init__(self) -> None:
        self._memory = memoryview(b"")
        self._start = -1

    def of(self, tensor: torch.Tensor) -> memoryview:
        """Return the bytes of *tensor*, of one axis; its buffer's may follow."""
        if not tensor.is_contiguous():
            return tensor.contiguous().numpy().data.cast("B")
        # What is remembered holds on to the memory: nothing else comes to lie there.
        start = tensor.data_ptr()
        if start != self._start or tensor.nbytes > len(self._memory):
            self._start, self._memory = start, tensor.numpy().data.cast("B")
        return self._memory


def _bytes_of(buffer: torch.Tensor) -> list[memoryview]:
    """Return the memory of each hook point; *buffer* is of shape (n_sites, ...)."""
    return [site.data.cast("B") for site in buffer.numpy()]
