"""Copies a step's rows out of the buffers before the next step overwrites them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.capture.step import Step
from service.capture.tap import TapBuffers


class Snapshooter:
    """Takes snapshots; on CUDA on a stream of its own, without waiting."""

    def __init__(self, buffers: TapBuffers) -> None:
        self._buffers = buffers
        is_cuda = buffers.values.is_cuda
        self._stream = torch.cuda.Stream() if is_cuda else None
        # Views of the same memory: numpy takes a copy in a tenth of PyTorch's time.
        self._values = None if is_cuda else buffers.values.numpy()
        self._squared_norms = None if is_cuda else buffers.squared_norms.numpy()

    def take_into(
        self,
        step: Step,
        token_ids: torch.Tensor,
        slots: torch.Tensor | None,
        width: int,
    ) -> None:
        """
        Copy the rows of *token_ids* and *slots* (n_rows,), *width* values each.

        On CUDA *step* has them when its *copied* is complete.
        """
        n = token_ids.shape[0]
        if self._values is not None and self._squared_norms is not None:
            step.values = self._values[:, :n, :width].copy()
            step.squared_norms = self._squared_norms[:, :n].copy()
            step.token_ids = token_ids.numpy().astype(np.int32)
            step.slots = None if slots is None else slots.numpy().astype(np.int32)
            return
        assert self._stream is not None
        values = self._buffers.values[:, :n, :width]
        norms = self._buffers.squared_norms[:, :n]
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
            landed: list[NDArray[Any]] = []
            for tensor in held:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                landed.append(host.copy_(tensor, non_blocking=True).numpy())
                tensor.record_stream(self._stream)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        step.values, step.squared_norms, step.token_ids = landed[:3]
        step.slots = landed[3] if slots is not None else None
        step.copied = copied
