import pytest
import torch
from torch import nn

from service.capture.layers import check_layers, find_decoder_layers, install_tap
from service.capture.settings import CaptureError
from service.capture.tap import TapBuffers
from service.capture.tap_points import TapPoint


class Block(nn.Module):
    """A decoder layer in vLLM's form: returns the update and the residual apart."""

    def __init__(self, d_model: int, is_deferred: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)
        self.is_deferred = is_deferred

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        stream = hidden if residual is None else hidden + residual
        update: torch.Tensor = self.linear(stream)
        return (update, stream) if self.is_deferred else update + stream


class Stack(nn.Module):
    """Blocks where vLLM's models have them, ``model.layers``."""

    def __init__(self, n_layers: int, is_deferred: bool = True) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(
            Block(8, is_deferred) for _ in range(n_layers)
        )


def make_buffers(k_max: int | None) -> TapBuffers:
    """Return buffers for one site with room for 16 rows of d_model 8."""
    return TapBuffers.allocate(
        n_sites=1, max_rows=16, d_model=8, k_max=k_max, device=torch.device("cpu")
    )


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("is_deferred", [False, True])
def test_a_tap_reads_the_sum_and_changes_nothing(
    is_compiled: bool, is_deferred: bool
) -> None:
    """Eager and compiled, the tap writes hidden + residual, and the output stays."""
    torch.manual_seed(0)
    block, buffers = Block(8, is_deferred), make_buffers(None)
    inputs = torch.randn(5, 8)
    with torch.inference_mode():
        untapped = block(inputs)
        install_tap(TapPoint(module=block, is_norm=False), buffers, 0)
        run = torch.compile(block, backend="aot_eager") if is_compiled else block
        output = run(inputs)
    parts = output if isinstance(output, tuple) else (output,)
    expected = untapped if isinstance(untapped, tuple) else (untapped,)

    for part, same in zip(parts, expected, strict=True):
        torch.testing.assert_close(part, same, rtol=0, atol=0)
    torch.testing.assert_close(buffers.values[0, :5], sum(expected))
    assert 0 == buffers.n_unwritten(5)
    assert 11 == int((buffers.squared_norms[0] == -1).sum())


def test_a_projection_is_the_bank_applied_to_the_sum() -> None:
    """Columns equal x W^T + b and the norm equals |x|^2, in float32."""
    torch.manual_seed(0)
    block, buffers = Block(8, is_deferred=True), make_buffers(3)
    assert buffers.weight is not None
    assert buffers.bias is not None
    assert buffers.n_columns is not None
    buffers.weight.normal_()
    buffers.bias.normal_()
    buffers.n_columns.fill_(3)
    install_tap(TapPoint(module=block, is_norm=False), buffers, 0)
    with torch.inference_mode():
        output = block(torch.randn(5, 8))
    stream = output[0] + output[1]

    expected = stream @ buffers.weight[0].t() + buffers.bias[0]
    torch.testing.assert_close(buffers.values[0, :5], expected)
    torch.testing.assert_close(buffers.squared_norms[0, :5], stream.square().sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("k_max", [None, 3])
def test_inputs_stay_as_they_are(
    dtype: torch.dtype, has_residual: bool, k_max: int | None
) -> None:
    """The operators leave both inputs alone, whatever they spare of copies."""
    torch.manual_seed(0)
    hidden, residual = torch.randn(2, 5, 8).to(dtype)
    before = hidden.clone(), residual.clone()
    buffers = make_buffers(k_max)

    buffers.write(hidden, residual if has_residual else None, site=0)

    expected = hidden.float() + (residual.float() if has_residual else 0)
    torch.testing.assert_close(buffers.squared_norms[0, :5], expected.square().sum(-1))
    if k_max is None:
        torch.testing.assert_close(buffers.values[0, :5], expected, rtol=0, atol=0)
    assert torch.equal(hidden, before[0])
    assert torch.equal(residual, before[1])


def test_columns_that_are_not_in_use_are_zero() -> None:
    """What an earlier, wider bank left does not stay, even beside infinities."""
    buffers = make_buffers(4)
    assert buffers.weight is not None
    assert buffers.n_columns is not None
    buffers.values.fill_(torch.nan)
    buffers.weight.fill_(1.0)
    buffers.n_columns.fill_(2)

    buffers.write(torch.full((3, 8), torch.inf), None, site=0)

    assert bool(buffers.values[0, :3, :2].isinf().all())
    assert 0 == int(buffers.values[0, :3, 2:].count_nonzero())
    assert bool(buffers.values[0, 3:].isnan().all())


def test_padding_is_not_taken_for_the_next_step() -> None:
    """
    A graph writes its padding too, and the next step's rows are poisoned all the same.

    Three rows in a graph of eight write eight; without a tap, a step of six then shows
    six silent rows, not one.
    """
    buffers = make_buffers(3)
    buffers.poison(3)
    buffers.write(torch.ones(8, 8), None, site=0)
    assert 0 == buffers.n_unwritten(3)

    buffers.poison(6)

    assert 6 == buffers.n_unwritten(6)
    assert 6 == buffers.n_unwritten(8)


def test_a_removed_tap_leaves_the_poison() -> None:
    """A row that no tap wrote is told from any row that one did, zeros included."""
    block, buffers = Block(8, is_deferred=True), make_buffers(3)
    original = type(block)
    install_tap(TapPoint(module=block, is_norm=False), buffers, 0)
    with torch.inference_mode():
        block(torch.zeros(4, 8))
        assert 0 == buffers.n_unwritten(4)
        buffers.poison(4)
        block.__class__ = original
        block(torch.zeros(4, 8))

    assert 4 == buffers.n_unwritten(4)


def test_rows_beyond_the_buffer_are_left_out() -> None:
    """A step larger than the buffers writes what fits and raises nothing."""
    block, buffers = Block(8, is_deferred=True), make_buffers(None)
    install_tap(TapPoint(module=block, is_norm=False), buffers, 0)
    with torch.inference_mode():
        block(torch.ones(20, 8))

    assert 0 == buffers.n_unwritten(16)


def test_layers_are_found_in_order() -> None:
    """The registry's names lead to the decoder layers, whatever order they come in."""
    stack = Stack(3)
    names = [f"model.layers.{i}.self_attn.attn" for i in (2, 0, 1)]

    found = find_decoder_layers(stack, names, range(3))

    layers = stack.model.get_submodule("layers").children()
    assert dict(enumerate(layers)) == found


@pytest.mark.parametrize(
    ("names", "n_layers", "message"),
    [
        (["model.layers.0.attn"], 2, r"configuration says \[0, 1\].*leads to \[0\]"),
        (["model.layers.0.attn", "vision.layers.0.attn"], 1, "expected one stack"),
        ([], 1, r"leads to \[\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    names: list[str], n_layers: int, message: str
) -> None:
    """A model whose layers cannot be told is refused, with what was found."""
    with pytest.raises(CaptureError, match=message):
        find_decoder_layers(Stack(2), names, range(n_layers))


def test_a_hook_point_beyond_the_model_is_refused() -> None:
    """An unknown block is refused with the last one that there is."""
    with pytest.raises(CaptureError, match=r"has 4 blocks, the last is blocks\.3"):
        check_layers([1, 4], 4)
