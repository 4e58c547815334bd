"""Runs the CUDA kernels on the CPU: Triton's interpreter, in a process of its own.

Triton decides at import whether it interprets, and vLLM or torch.compile in the same
process would see it too.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from service.capture.tap import TapBuffers


def start() -> ProcessPoolExecutor:
    """Return a pool of one process in which Triton interprets."""
    return ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_interpret
    )


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def write(
    buffers: TapBuffers,
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    site: int,
    row_stride: int = 0,
) -> TapBuffers:
    """
    Return *buffers* as the kernels leave them.

    With *row_stride* the rows of both inputs lie that far apart, as those of a slice
    of a wider tensor do: what is sent between processes is contiguous.
    """
    from service.capture import tap_cuda

    hidden = _strided(hidden, row_stride)
    if residual is not None:
        residual = _strided(residual, row_stride)
    norms = buffers.squared_norms
    if buffers.weight is None:
        tap_cuda.copy(hidden, residual, buffers.values, norms, site)
    else:
        assert buffers.bias is not None
        assert buffers.n_columns is not None
        tap_cuda.project(
            hidden,
            residual,
            buffers.weight,
            buffers.bias,
            buffers.n_columns,
            buffers.values,
            norms,
            site,
        )
    return buffers


def _strided(tensor: torch.Tensor, row_stride: int) -> torch.Tensor:
    if not row_stride:
        return tensor
    wide = torch.full((tensor.shape[0], row_stride), torch.nan, dtype=tensor.dtype)
    wide[:, : tensor.shape[1]] = tensor
    return wide[:, : tensor.shape[1]]
