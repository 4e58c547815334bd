"""The tap: operators that write what they read of the residual stream to a buffer.

Rule 1: an operator here mutates only buffers that are passed to it as arguments and
outlive the graph. One that mutates a temporary, or hides its mutation, is removed by
torch.compile without a word.

Rule 2: no shape depends on data, nothing is allocated that a CUDA graph could not
replay, and nothing is raised on a tensor's contents.
"""

from dataclasses import dataclass

import torch

NOT_WRITTEN = -1.0
"""Squared norm of a row that no tap wrote: no real one is negative."""

MISATTRIBUTED = -2.0
"""Squared norm of a row whose token is not the one that its request has there."""

# The library object owns the operators: they live as long as it does.
_library = torch.library.Library("innerwatch", "DEF")


def _project(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    columns: torch.Tensor,
    squared_norms: torch.Tensor,
    site: int,
) -> None:
    stream = hidden.float() if residual is None else hidden.float() + residual.float()
    n = min(stream.shape[0], columns.shape[1])
    stream = stream[:n]
    torch.addmm(bias[site], stream, weight[site].t(), out=columns[site, :n])
    torch.sum(stream * stream, dim=-1, out=squared_norms[site, :n])


def _copy(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    activations: torch.Tensor,
    squared_norms: torch.Tensor,
    site: int,
) -> None:
    stream = hidden.float() if residual is None else hidden.float() + residual.float()
    n = min(stream.shape[0], activations.shape[1])
    stream = stream[:n]
    activations[site, :n].copy_(stream)
    torch.sum(stream * stream, dim=-1, out=squared_norms[site, :n])


def _register() -> None:
    for name, function, mutated in (
        ("project", _project, ("columns", "squared_norms")),
        ("copy", _copy, ("activations", "squared_norms")),
    ):
        schema = torch.library.infer_schema(function, mutates_args=mutated)
        _library.define(name + schema)
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"innerwatch::{name}", lambda *_: None, lib=_library
        )


_register()


@dataclass(slots=True, kw_only=True)
class TapBuffers:
    """
    The tensors at fixed addresses that every tap of a model writes to or reads.

    A site is a hook point's index. *values* holds columns (width k_max) or
    activations (width d_model), float32 of shape (n_sites, max_rows, width).
    *squared_norms* is float32 of shape (n_sites, max_rows). *weight*, of shape
    (n_sites, k_max, d_model), and *bias*, (n_sites, k_max), are the projection
    bank, or None for activations.
    """

    values: torch.Tensor
    squared_norms: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def allocate(
        cls,
        *,
        n_sites: int,
        max_rows: int,
        d_model: int,
        k_max: int | None,
        device: torch.device,
    ) -> "TapBuffers":
        """Make the buffers on *device*; *k_max* None means activations."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=device)

        return cls(
            values=zeros(n_sites, max_rows, k_max or d_model),
            squared_norms=zeros(n_sites, max_rows).fill_(NOT_WRITTEN),
            weight=None if k_max is None else zeros(n_sites, k_max, d_model),
            bias=None if k_max is None else zeros(n_sites, k_max),
        )

    def poison(self, n_rows: int) -> None:
        """Mark the first *n_rows* rows as not written: no squared norm is negative."""
        self.squared_norms[:, :n_rows].fill_(NOT_WRITTEN)

    def n_unwritten(self, n_rows: int) -> int:
        """Count rows that some tap has not written since they were poisoned."""
        silent = (self.squared_norms[:, :n_rows] == NOT_WRITTEN).any(dim=0)
        return int(silent.sum())

    def tensors(self) -> dict[str, torch.Tensor | None]:
        """Return the buffers by name, as the tapped layers hold them."""
        return {
            "values": self.values,
            "squared_norms": self.squared_norms,
            "weight": self.weight,
            "bias": self.bias,
        }
