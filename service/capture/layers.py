"""Finds a model's decoder layers, and swaps the class of those that are tapped."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from service.capture.settings import CaptureError
from service.capture.tap import BUFFER_NAMES, TapBuffers, write_rows
from service.capture.tap_points import TapPoint


def find_decoder_layers(
    model: nn.Module, registered: Iterable[str], own: range
) -> dict[int, nn.Module]:
    """
    Return the decoder layers of *model* that are on this worker, by their index.

    Args:
        model: As vLLM loaded it.

        registered: Names in vLLM's `static_forward_context`, in which every attention
            layer is entered: ``"model.layers.3.self_attn.attn"``.

        own: Those that are on this worker by the model's configuration.

    Raises:
        CaptureError: The names do not lead to exactly these layers.
    """
    paths: dict[int, str] = {}
    for name in registered:
        segments = name.split(".")
        index = next((i for i, s in enumerate(segments) if s.isdecimal()), None)
        if index is None:
            continue
        path = ".".join(segments[: index + 1])
        other = paths.setdefault(int(segments[index]), path)
        if other != path:
            raise CaptureError(
                f"decoder layers of {type(model).__name__}: expected one stack, "
                f"found {other!r} and {path!r}"
            )
    if sorted(paths) != list(own):
        raise CaptureError(
            f"decoder layers of {type(model).__name__}: the configuration says "
            f"{list(own)}, vLLM's registry leads to {sorted(paths)}"
        )
    return {i: model.get_submodule(paths[i]) for i in own}


def install_tap(point: TapPoint, buffers: TapBuffers, site: int) -> None:
    """
    Make the module of *point* hand the residual stream to the operators at *site*.

    The class of this one module is swapped for a subclass: no hook that
    torch.compile would fold away, and other layers keep their compiled code.
    """
    module = point.module
    original: Any = type(module)
    tapped = type(
        f"Tapped{original.__name__}",
        (original,),
        {
            "forward": _norm_forward if point.is_norm else _block_forward,
            "innerwatch_untapped": original.forward,
        },
    )
    module.__class__ = tapped
    # Buffers and a plain int of the module, not a closure: what torch.compile saves
    # of the graph has to find them again in another process.
    module.innerwatch_site = site  # type: ignore[assignment]
    for name, tensor in buffers.tensors().items():
        module.register_buffer(f"innerwatch_{name}", tensor, persistent=False)


def _block_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    output = self.innerwatch_untapped(*args, **kwargs)
    # Two tensors: vLLM adds the residual inside the next norm, so the residual
    # stream after this block is their sum.
    if isinstance(output, torch.Tensor):
        _write(self, output, None)
    else:
        _write(self, output[0], output[1])
    return output


def _norm_forward(
    self: Any, x: torch.Tensor, residual: torch.Tensor | None = None
) -> Any:
    output = self.innerwatch_untapped(x, residual)
    # With a residual the norm returns the sum too. Without one it was given the whole
    # stream, by a model that adds in its blocks.
    _write(self, x if isinstance(output, torch.Tensor) else output[1], None)
    return output


def _write(self: Any, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
    tensors = {name: getattr(self, f"innerwatch_{name}") for name in BUFFER_NAMES}
    write_rows(tensors, hidden, residual, self.innerwatch_site)


def check_layers(hook_layers: Sequence[int], n_layers: int) -> None:
    """Raise `CaptureError` when a hook point's block is not in the model."""
    for layer in hook_layers:
        if layer >= n_layers:
            raise CaptureError(
                f"innerwatch.hook_points: blocks.{layer}.hook_resid_post: the model "
                f"has {n_layers} blocks, the last is blocks.{n_layers - 1}"
            )
