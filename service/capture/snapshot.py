"""Copies a step's rows out of the buffers before the next step overwrites them."""

import numpy as np
import torch

from service.capture.arena import Arena, Piece
from service.capture.step import Step
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
        # Views of the same memory: numpy takes a copy in a tenth of PyTorch's time.
        self._values = None if is_cuda else buffers.values.numpy()
        self._squared_norms = None if is_cuda else buffers.squared_norms.numpy()

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
        Copy the rows of *token_ids* and *slots* (n_rows,), *width* values each.

        They go into *step*'s piece. On CUDA they are there when its *copied* is
        complete.

        Raises:
            ValueError: The piece is not for so many.
        """
        piece, n, n_sites = step.piece, token_ids.shape[0], self._n_sites
        n_bytes = row_bytes(n_sites, width) * n
        if piece is None or n_bytes > piece.n_bytes:
            has = 0 if piece is None else piece.n_bytes
            raise ValueError(f"rows: expected {has} bytes of them, got {n_bytes}")
        memory, at = piece.array, piece.start
        step.values = values = np.ndarray((n_sites, n, width), np.float32, memory, at)
        at += values.nbytes
        step.squared_norms = norms = np.ndarray((n_sites, n), np.float32, memory, at)
        at += norms.nbytes
        step.token_ids = ids = np.ndarray(n, np.int32, memory, at)
        held = np.ndarray(n, np.int32, memory, at + ids.nbytes)
        step.slots = None if slots is None else held
        if self._values is None or self._squared_norms is None:
            self._copy_from_device(step, piece, token_ids, slots)
            return
        values[...] = self._values[:, :n, :width]
        norms[...] = self._squared_norms[:, :n]
        ids[...] = token_ids.numpy()
        if slots is not None:
            held[...] = slots.numpy()

    def _copy_from_device(
        self,
        step: Step,
        piece: Piece,
        token_ids: torch.Tensor,
        slots: torch.Tensor | None,
    ) -> None:
        assert self._stream is not None
        n, width = step.n_rows, 0 if step.values is None else step.values.shape[2]
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
                host = piece.tensor[at : at + tensor.nbytes].view(tensor.dtype)
                host.view(tensor.shape).copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
                at += tensor.nbytes
            copied = torch.cuda.Event()
            copied.record(self._stream)
        step.copied = copied


def row_bytes(n_sites: int, width: int) -> int:
    """Values and squared norms a hook point, a token id and a KV slot."""
    return 4 * (n_sites * (width + 1) + 2)
