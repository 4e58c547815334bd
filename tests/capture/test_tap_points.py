"""The tap at the norm after a block reads what the tap at its end reads."""

import logging

import pytest
import torch
from torch import nn

from service.capture.layers import install_tap
from service.capture.settings import CaptureError, TapPointName
from service.capture.tap import TapBuffers
from service.capture.tap_points import TapPoint, choose_tap_point

D_MODEL = 8
N_LAYERS = 3


class Norm(nn.Module):
    """As vLLM's RMSNorm: with a residual it adds first, in place, and returns both."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return nn.functional.rms_norm(x, (D_MODEL,))
        residual.add_(x)
        x.copy_(nn.functional.rms_norm(residual, (D_MODEL,)))
        return x, residual


class Block(nn.Module):
    """A decoder layer; *is_deferred* leaves the addition to the next norm."""

    def __init__(self, is_deferred: bool) -> None:
        super().__init__()
        self.input_layernorm = Norm()
        self.linear = nn.Linear(D_MODEL, D_MODEL)
        self.is_deferred = is_deferred

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        if not self.is_deferred:
            update: torch.Tensor = self.linear(self.input_layernorm(hidden))
            return hidden + update
        if residual is None:
            residual, hidden = hidden.clone(), self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        return self.linear(hidden), residual


class Model(nn.Module):
    """``model.layers`` and ``model.norm``, as vLLM's Llama has them."""

    def __init__(self, is_deferred: bool = True) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Block(is_deferred) for _ in range(N_LAYERS))
        self.model.norm = Norm()
        self.is_deferred = is_deferred

    def layers(self) -> list[nn.Module]:
        return list(self.model.get_submodule("layers").children())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = None
        for layer in self.layers():
            if self.is_deferred:
                hidden, residual = layer(hidden, residual)
            else:
                hidden = layer(hidden, None)
        if not self.is_deferred:
            found: torch.Tensor = self.model.get_submodule("norm")(hidden)
            return found
        hidden, _ = self.model.get_submodule("norm")(hidden, residual)
        return hidden


def choose(
    model: Model, layer: int, wanted: TapPointName, n_parallel: int = 1
) -> TapPoint:
    return choose_tap_point(
        model,
        dict(enumerate(model.layers())),
        layer,
        wanted=wanted,
        n_parallel=n_parallel,
        norm_types=(Norm,),
    )


def make_buffers() -> TapBuffers:
    return TapBuffers.allocate(
        n_sites=1, max_rows=8, d_model=D_MODEL, k_max=None, device=torch.device("cpu")
    )


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("is_deferred", [False, True])
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_both_taps_read_the_same(
    layer: int, is_deferred: bool, is_compiled: bool
) -> None:
    """
    At the end of a block or at the norm after it: same activations, same output.

    Norms that add in place included, the final norm after the last block, and models
    that add in their blocks and call their norms with one tensor.
    """
    torch.manual_seed(0)
    model = Model(is_deferred)
    inputs = torch.randn(5, D_MODEL)
    found = {}
    with torch.inference_mode():
        expected = model(inputs.clone())
        for wanted in ("block", "norm"):
            torch.manual_seed(0)
            tapped, buffers = Model(is_deferred), make_buffers()
            point = choose(tapped, layer, wanted)
            install_tap(point, buffers, 0)
            assert point.is_norm == (wanted == "norm")
            run = torch.compile(tapped, backend="aot_eager") if is_compiled else tapped
            torch.testing.assert_close(run(inputs.clone()), expected)
            assert 0 == buffers.n_unwritten(5)
            found[wanted] = buffers
    torch.compiler.reset()

    torch.testing.assert_close(found["norm"].values, found["block"].values)
    torch.testing.assert_close(
        found["norm"].squared_norms, found["block"].squared_norms
    )


def test_the_norm_is_chosen_with_tensor_parallelism() -> None:
    """`auto` is the end of the block on one GPU, and the norm on several."""
    model = Model()

    assert choose(model, 1, "auto").module is model.layers()[1]
    following = model.layers()[2].get_submodule("input_layernorm")
    assert choose(model, 1, "auto", n_parallel=2).module is following
    assert choose(model, 2, "auto", n_parallel=2).module is model.model.norm
    assert choose(model, 1, "block", n_parallel=2).module is model.layers()[1]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (0, "layer 1's input_layernorm is LayerNorm"),
        (1, "layer 2's input_layernorm is nothing"),
        (2, "the final norm is Identity"),
    ],
)
def test_a_model_without_such_a_norm_is_tapped_at_the_block(
    layer: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is in the log; a norm that was asked for by name is refused."""
    model = Model()
    model.layers()[1].input_layernorm = nn.LayerNorm(D_MODEL)
    del model.layers()[2].input_layernorm
    model.model.norm = nn.Identity()

    with caplog.at_level(logging.WARNING, logger="innerwatch.capture"):
        point = choose(model, layer, "auto", n_parallel=2)

    assert point.module is model.layers()[layer]
    assert message in caplog.text
    with pytest.raises(CaptureError, match=message):
        choose(model, layer, "norm")
