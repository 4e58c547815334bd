"""Chooses the module at which a block's output is read.

At the end of the block vLLM still holds two tensors, whose sum is the residual stream.
The next norm adds them. With tensor parallelism vLLM can fuse the all-reduce at the end
of the block with that addition and the norm, but not if anybody else reads what the
all-reduce gave. So there the tap is at the norm, whose second output is the sum.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from service.capture.settings import CaptureError, TapPointName

_log = logging.getLogger("innerwatch.capture")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TapPoint:
    """A module to tap: a decoder layer, or (*is_norm*) the norm that follows it."""

    module: nn.Module
    is_norm: bool


def choose_tap_point(
    model: nn.Module,
    layers: Mapping[int, nn.Module],
    layer: int,
    *,
    wanted: TapPointName,
    n_parallel: int,
    norm_types: tuple[type[nn.Module], ...],
) -> TapPoint:
    """
    Return where the output of ``layers[layer]`` is read.

    Args:
        model: That the *layers* are of.

        layers: The decoder layers on this worker, by their index.

        layer: The tapped block.

        wanted: ``"auto"`` takes the norm with tensor parallelism, where there is one.

        n_parallel: Size of the tensor-parallel group.

        norm_types: Norms whose second output, called with a residual, is the sum.

    Raises:
        CaptureError: ``"norm"`` is wanted, and no such norm follows the block.
    """
    block = TapPoint(module=layers[layer], is_norm=False)
    if wanted == "block" or (wanted == "auto" and n_parallel == 1):
        return block
    norm, name = _norm_after(model, layers, layer)
    if isinstance(norm, norm_types):
        return TapPoint(module=norm, is_norm=True)
    found = "nothing" if norm is None else type(norm).__name__
    reason = (
        f"blocks.{layer}.hook_resid_post: {name} is {found}, expected one of "
        f"{[t.__name__ for t in norm_types]}"
    )
    if wanted == "norm":
        raise CaptureError(f"innerwatch.tap_point: {reason}")
    _log.warning(
        "innerwatch: %s; tapped at the end of the block, where vLLM can not fuse its "
        "all-reduce with the next norm",
        reason,
    )
    return block


def _norm_after(
    model: nn.Module, layers: Mapping[int, nn.Module], layer: int
) -> tuple[Any, str]:
    """Return the module that should be the norm after a block, and what it is."""
    following = layers.get(layer + 1)
    if following is not None:
        name = f"layer {layer + 1}'s input_layernorm"
        return getattr(following, "input_layernorm", None), name
    return getattr(_owner(model, layers[layer]), "norm", None), "the final norm"


def _owner(model: nn.Module, layer: nn.Module) -> nn.Module | None:
    """Return the module in which the stack that *layer* is in is."""
    stack = next(
        (m for m in model.modules() if any(c is layer for c in m.children())), None
    )
    return next(
        (m for m in model.modules() if any(c is stack for c in m.children())), None
    )
