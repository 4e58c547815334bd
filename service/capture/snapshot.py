"""Copies a step's rows out of the buffers before the next step overwrites them."""

from dataclasses import dataclass

import torch

from service.capture.tap import TapBuffers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """
    A step's rows in host memory; on CUDA complete once *copied* is.

    Shapes: *values* (n_sites, n_rows, width), *squared_norms* (n_sites, n_rows),
    both float32; *token_ids* and *slots* int32 (n_rows,); no slots where they are
    not known.
    """

    values: torch.Tensor
    squared_norms: torch.Tensor
    token_ids: torch.Tensor
    slots: torch.Tensor | None
    copied: torch.cuda.Event | None


class Snapshooter:
    """Takes snapshots; on CUDA on a stream of its own, without waiting."""

    def __init__(self, buffers: TapBuffers) -> None:
        self._buffers = buffers
        is_cuda = buffers.values.is_cuda
        self._stream = torch.cuda.Stream() if is_cuda else None

    def take(
        self, token_ids: torch.Tensor, slots: torch.Tensor | None, width: int
    ) -> Snapshot:
        """Copy the rows of *token_ids* and *slots* (n_rows,), *width* values each."""
        n = token_ids.shape[0]
        values = self._buffers.values[:, :n, :width]
        norms = self._buffers.squared_norms[:, :n]
        if self._stream is None:
            return Snapshot(
                values=values.clone(memory_format=torch.contiguous_format),
                squared_norms=norms.clone(),
                token_ids=token_ids.to(torch.int32, copy=True),
                slots=None if slots is None else slots.to(torch.int32, copy=True),
                copied=None,
            )
        # On the main stream, so that the next step, queued behind, cannot overwrite
        # what the side stream still reads.
        held = [
            values.clone(memory_format=torch.contiguous_format),
            norms.clone(memory_format=torch.contiguous_format),
            token_ids.to(torch.int32, copy=True),
        ]
        if slots is not None:
            held.append(slots.to(torch.int32, copy=True))
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            landed = []
            for tensor in held:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                landed.append(host.copy_(tensor, non_blocking=True))
                tensor.record_stream(self._stream)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return Snapshot(
            values=landed[0],
            squared_norms=landed[1],
            token_ids=landed[2],
            slots=landed[3] if slots is not None else None,
            copied=copied,
        )
