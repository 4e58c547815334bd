"""The tap: operators that write what they read of the residual stream to a buffer.

Rule 1: an operator here mutates only buffers that are passed to it as arguments and
outlive the graph. One that mutates a temporary, or hides its mutation, is removed by
torch.compile without a word.

Rule 2: no shape depends on data, nothing is allocated that a CUDA graph could not
replay, and nothing is raised on a tensor's contents.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

_log = logging.getLogger("innerwatch.capture")

NOT_WRITTEN = -1.0
"""Squared norm of a row that no tap wrote: no real one is negative."""

MISATTRIBUTED = -2.0
"""Squared norm of a row whose token is not the one that its request has there."""

BUFFER_NAMES = ("values", "squared_norms", "weight", "bias", "n_columns")
"""What a tapped layer holds, and an operator is given."""

# The library object owns the operators: they live as long as it does.
_library = torch.library.Library("innerwatch", "DEF")


def _project(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    n_columns: torch.Tensor,
    columns: torch.Tensor,
    squared_norms: torch.Tensor,
    site: int,
) -> None:
    n = min(hidden.shape[0], columns.shape[1])
    stream = _stream(hidden[:n], None if residual is None else residual[:n])
    found = columns[site, :n]
    # Reading it on a device would wait for the device, and its value shape a graph.
    used = n_columns.tolist()[site] if n_columns.is_cpu else columns.shape[2]
    if used < columns.shape[2]:
        found[:, used:].zero_()
    if used:
        torch.addmm(
            bias[site, :used], stream, weight[site, :used].t(), out=found[:, :used]
        )
    _square(stream, squared_norms[site, :n])


def _copy(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    activations: torch.Tensor,
    squared_norms: torch.Tensor,
    site: int,
) -> None:
    n = min(hidden.shape[0], activations.shape[1])
    stream = activations[site, :n]
    stream.copy_(hidden[:n])
    if residual is not None:
        stream.add_(residual[:n])
    _square(stream, squared_norms[site, :n])


def _stream(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """Return the sum in float32, with as few copies as there can be."""
    if residual is None:
        return hidden.float()
    if hidden.dtype == torch.float32:
        return hidden + residual
    return hidden.float().add_(residual)


def _square(stream: torch.Tensor, squared_norms: torch.Tensor) -> None:
    # One pass over the stream; the sum of its squares would be another tensor first.
    torch.linalg.vector_norm(stream, dim=-1, out=squared_norms)
    squared_norms.square_()


def implement(name: str, function: Callable[..., None], key: str) -> None:
    """Make *function* what operator *name* does on tensors of dispatch key *key*."""
    _library.impl(name, function, key)


def _register() -> None:
    for name, function, mutated in (
        ("project", _project, ("columns", "squared_norms")),
        ("copy", _copy, ("activations", "squared_norms")),
    ):
        schema = torch.library.infer_schema(function, mutates_args=mutated)
        _library.define(name + schema)
        implement(name, function, "CompositeExplicitAutograd")
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
    bank, and *n_columns*, int32 of shape (n_sites,), how many of its columns are in
    use: the others are zero and cost nothing. All three are None for activations.
    """

    values: torch.Tensor
    squared_norms: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    n_columns: torch.Tensor | None

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
            n_columns=None if k_max is None else zeros(n_sites).to(torch.int32),
        )

    @property
    def d_model(self) -> int:
        """Width of the activations that the taps read."""
        widest = self.values if self.weight is None else self.weight
        return int(widest.shape[-1])

    def write(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, *, site: int
    ) -> None:
        """Write the rows of *hidden* + *residual*, (n_rows, d_model), at *site*."""
        write_rows(self.tensors(), hidden, residual, site)

    def poison(self, n_rows: int) -> None:
        """Mark the first *n_rows* rows as not written: no squared norm is negative."""
        self.squared_norms[:, :n_rows].fill_(NOT_WRITTEN)

    def n_unwritten(self, n_rows: int) -> int:
        """Count rows that some tap has not written since they were poisoned."""
        silent = (self.squared_norms[:, :n_rows] == NOT_WRITTEN).any(dim=0)
        return int(silent.sum())

    def tensors(self) -> dict[str, torch.Tensor | None]:
        """Return the buffers by name, as the tapped layers hold them."""
        return {name: getattr(self, name) for name in BUFFER_NAMES}


def write_rows(
    tensors: Mapping[str, torch.Tensor | None],
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    site: int,
) -> None:
    """Call the operator that *tensors*, buffers by name, are for."""
    values, norms = tensors["values"], tensors["squared_norms"]
    if tensors["weight"] is None:
        torch.ops.innerwatch.copy(hidden, residual, values, norms, site)
        return
    torch.ops.innerwatch.project(
        hidden,
        residual,
        tensors["weight"],
        tensors["bias"],
        tensors["n_columns"],
        values,
        norms,
        site,
    )


def use_kernels(buffers: TapBuffers, dtype: torch.dtype) -> None:
    """Use the CUDA kernels for *buffers* on CUDA, ready for activations of *dtype*."""
    if not buffers.values.is_cuda:
        return
    try:
        # Registers them. Imported here: a CPU server has no Triton, and needs none.
        from service.capture.tap_cuda import compile_kernels
    except ImportError as error:
        _log.warning("innerwatch: taps without their CUDA kernels: %s", error)
        return
    compile_kernels(buffers, dtype)
