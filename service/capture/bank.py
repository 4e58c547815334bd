"""The projection bank inside the model: buffer contents, replaced between two steps."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from service.capture.settings import CaptureError
from service.capture.tap import TapBuffers


class BankSliceMessage(Protocol):
    """`BankSlice` of the wire, as far as it is read here."""

    hook_point: str
    n_columns: int
    d_model: int
    weight: bytes
    bias: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostBank:
    """
    A bank in host memory, ready to be copied into the buffers.

    *weight* is float32 of shape (n_sites, k_max, d_model), *bias* (n_sites, k_max);
    unused columns are zero. *n_columns*, int32 of shape (n_sites,), is how many are in
    use, and *width* the largest of them.
    """

    digest: str
    weight: torch.Tensor
    bias: torch.Tensor
    n_columns: torch.Tensor
    width: int

    def pinned_for(self, device: torch.device) -> "HostBank":
        """Return it in memory from which a copy to *device* does not keep a thread."""
        if device.type != "cuda":
            return self
        with torch.cuda.device(device):
            return replace(
                self,
                weight=self.weight.pin_memory(),
                bias=self.bias.pin_memory(),
                n_columns=self.n_columns.pin_memory(),
            )

    def write_to(self, buffers: TapBuffers) -> None:
        """
        Copy into *buffers*: on the engine's thread, between two steps.

        On CUDA the copy is queued on the stream that the model runs on: behind the
        last step and the snapshot of its rows, before the next step. PyTorch keeps
        pinned memory that is let go of until the copy is done.
        """
        assert buffers.weight is not None
        assert buffers.bias is not None
        assert buffers.n_columns is not None
        buffers.weight.copy_(self.weight, non_blocking=True)
        buffers.bias.copy_(self.bias, non_blocking=True)
        buffers.n_columns.copy_(self.n_columns, non_blocking=True)


def host_bank(
    digest: str,
    slices: list[BankSliceMessage],
    *,
    hook_points: tuple[str, ...],
    elsewhere: Iterable[str] = (),
    k_max: int,
    d_model: int,
) -> HostBank:
    """
    Check a bank that the daemon sent and lay it out for the buffers.

    Args:
        digest: Of the whole bank.
        slices: One a hook point.
        hook_points: Tapped here, in the order of the buffers.
        elsewhere: Tapped by any rank of the engine; the others see to their slices.
        k_max: Columns that a hook point has room for.
        d_model: Of the model.

    Raises:
        CaptureError: A slice is for a hook point that is not tapped, too wide, or of
            another d_model.
    """
    slices = [
        s
        for s in slices
        if s.hook_point in hook_points or s.hook_point not in elsewhere
    ]
    weight = np.zeros((len(hook_points), k_max, d_model), dtype=np.float32)
    bias = np.zeros((len(hook_points), k_max), dtype=np.float32)
    n_columns = np.zeros(len(hook_points), dtype=np.int32)
    for part in slices:
        if part.hook_point not in hook_points:
            raise CaptureError(
                f"bank {digest[:12]}: reads {part.hook_point}, tapped are "
                f"{list(hook_points)}"
            )
        if part.d_model != d_model or part.n_columns > k_max:
            raise CaptureError(
                f"bank {digest[:12]}: {part.hook_point}: expected d_model {d_model} "
                f"and at most {k_max} columns, got {part.d_model} and {part.n_columns}"
            )
        n_bytes = 4 * part.n_columns
        if (len(part.weight), len(part.bias)) != (n_bytes * d_model, n_bytes):
            raise CaptureError(
                f"bank {digest[:12]}: {part.hook_point}: expected "
                f"{n_bytes * d_model} + {n_bytes} bytes, got "
                f"{len(part.weight)} + {len(part.bias)}"
            )
        site = hook_points.index(part.hook_point)
        rows = np.frombuffer(part.weight, dtype="<f4").reshape(-1, d_model)
        weight[site, : part.n_columns] = rows
        n_columns[site] = part.n_columns
        bias[site, : part.n_columns] = np.frombuffer(part.bias, dtype="<f4")
    return HostBank(
        digest=digest,
        weight=torch.from_numpy(weight),
        bias=torch.from_numpy(bias),
        n_columns=torch.from_numpy(n_columns),
        width=max((part.n_columns for part in slices), default=1) or 1,
    )
