"""The CUDA kernels equal the plain operators: in Triton's interpreter, on the CPU."""

import copy
import sys
from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.capture.tap import TapBuffers
from tests.capture import compiled, interpreted

MAX_ROWS = 130
SITE = 1


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Executor]:
    with interpreted.start() as pool:
        yield pool


@pytest.fixture(scope="module")
def compiler() -> Iterator[Executor]:
    with compiled.start() as pool:
        yield pool


def make_buffers(
    k_max: int | None, d_model: int, *, n_columns: int = 0, max_rows: int = MAX_ROWS
) -> TapBuffers:
    """Return buffers of two sites, values a sentinel and the bank random."""
    buffers = TapBuffers.allocate(
        n_sites=2,
        max_rows=max_rows,
        d_model=d_model,
        k_max=k_max,
        device=torch.device("cpu"),
    )
    buffers.values.fill_(7.0)
    if k_max is not None:
        assert buffers.weight is not None
        assert buffers.bias is not None
        assert buffers.n_columns is not None
        buffers.weight.normal_()
        buffers.bias.normal_()
        buffers.n_columns.fill_(n_columns)
    return buffers


def make_inputs(
    n_rows: int, d_model: int, dtype: torch.dtype, has_residual: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    hidden, residual = torch.randn(2, n_rows, d_model).to(dtype)
    return hidden, residual if has_residual else None


def check_equal(
    interpreter: Executor,
    buffers: TapBuffers,
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    row_stride: int = 0,
) -> None:
    """Compare the whole buffers: what is not to be written has to stay."""
    plain = copy.deepcopy(buffers)
    plain.write(hidden, residual, site=SITE)
    kernel = interpreter.submit(
        interpreted.write, buffers, hidden, residual, SITE, row_stride
    ).result()

    # Relative to what a column could at most be: it may cancel to nothing.
    scale = plain.squared_norms[SITE].clamp(min=1.0).sqrt().unsqueeze(-1)
    if plain.weight is not None:
        scale = scale * plain.weight[SITE].norm(dim=-1).clamp(min=1.0)
    is_finite = plain.squared_norms[SITE].isfinite()
    torch.testing.assert_close(
        (kernel.values[SITE] / scale)[is_finite],
        (plain.values[SITE] / scale)[is_finite],
        rtol=0,
        atol=1e-6,
    )
    torch.testing.assert_close(
        kernel.values[SITE, ~is_finite], plain.values[SITE, ~is_finite], equal_nan=True
    )
    torch.testing.assert_close(
        kernel.squared_norms, plain.squared_norms, rtol=1e-6, atol=0, equal_nan=True
    )
    assert torch.equal(kernel.values[1 - SITE], plain.values[1 - SITE])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("k_max", [None, 40])
def test_every_dtype(
    interpreter: Executor, dtype: torch.dtype, has_residual: bool, k_max: int | None
) -> None:
    """Whatever the model computes in, the sum and the products are float32."""
    torch.manual_seed(0)
    buffers = make_buffers(k_max, 300, n_columns=33)

    check_equal(interpreter, buffers, *make_inputs(17, 300, dtype, has_residual))


@pytest.mark.parametrize("n_rows", [1, 3, 8, 9, 64, 65, 129])
@pytest.mark.parametrize("k_max", [None, 48])
def test_ragged_row_counts(
    interpreter: Executor, n_rows: int, k_max: int | None
) -> None:
    """Every tile's first and last row count; later rows keep what they had."""
    torch.manual_seed(n_rows)
    buffers = make_buffers(k_max, 72, n_columns=41)

    check_equal(interpreter, buffers, *make_inputs(n_rows, 72, torch.float32, True))


def test_the_tile_of_a_long_prefill(interpreter: Executor) -> None:
    """More than a thousand rows are cut differently, and come out the same."""
    torch.manual_seed(0)
    buffers = make_buffers(20, 40, n_columns=20, max_rows=1030)

    check_equal(interpreter, buffers, *make_inputs(1030, 40, torch.bfloat16, True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n_rows=st.integers(0, 140),
    d_model=st.integers(1, 70),
    k_max=st.integers(1, 70),
    share=st.floats(0, 1),
    has_residual=st.booleans(),
    gap=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_any_shape(
    interpreter: Executor,
    n_rows: int,
    d_model: int,
    k_max: int,
    share: float,
    has_residual: bool,
    gap: int,
    seed: int,
) -> None:
    """Any sizes, rows apart or not, more rows than the buffer, any columns in use."""
    torch.manual_seed(seed)
    buffers = make_buffers(k_max, d_model, n_columns=round(share * k_max))
    hidden, residual = make_inputs(n_rows, d_model, torch.float32, has_residual)

    check_equal(
        interpreter, buffers, hidden, residual, row_stride=d_model + gap if gap else 0
    )


@pytest.mark.parametrize("n_rows", [5, 20, 70])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k_max", [None, 40])
def test_what_is_not_finite_stays_in_its_row(
    interpreter: Executor, n_rows: int, value: float, k_max: int | None
) -> None:
    """NaN and infinity reach their own row's columns and norm, and no other's."""
    torch.manual_seed(0)
    buffers = make_buffers(k_max, 72, n_columns=33)
    hidden, residual = make_inputs(n_rows, 72, torch.float32, True)
    hidden[3, 50] = value

    check_equal(interpreter, buffers, hidden, residual)
    kernel = interpreter.submit(
        interpreted.write, buffers, hidden, residual, SITE
    ).result()

    is_finite = kernel.squared_norms[SITE, :n_rows].isfinite()
    assert [3] == (~is_finite).nonzero().flatten().tolist()
    assert bool(kernel.values[SITE, :n_rows][is_finite].isfinite().all())


def test_triton_is_not_imported_without_cuda() -> None:
    """A CPU server's taps do without Triton: the kernels' module is not loaded."""
    make_buffers(3, 8)

    assert "service.capture.tap_cuda" not in sys.modules


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_kernels_compile_for_gpus(compiler: Executor, architecture: int) -> None:
    """
    Every kernel compiles to machine code, exact, for the GPUs that serve models.

    No product is rounded to TF32 (no tensor core is used), no register spills, and no
    more shared memory is asked for than every GPU has.
    """
    found = compiler.submit(compiled.compile_all, architecture).result()

    assert len(found) == 5
    for kernel in found:
        assert not kernel.is_rounding
        assert kernel.n_spilled_bytes == 0
        assert kernel.shared_bytes <= 48 << 10


@pytest.mark.parametrize("k_max", [1, 5, 64, 128, 256])
@pytest.mark.parametrize("d_model", [1, 64, 4096])
def test_tiles_fit_their_shapes(compiler: Executor, k_max: int, d_model: int) -> None:
    """A tile is made of powers of two, and no wider than the buffers need."""
    tiles = compiler.submit(compiled.tiles, k_max, d_model, (1, 9, 65, 1025)).result()

    assert [1, 4, 32, 64] == [tile.rows for tile in tiles]
    for tile in tiles:
        least = 16 if tile.is_dot else 1
        assert tile.columns & (tile.columns - 1) == 0
        assert tile.depth & (tile.depth - 1) == 0
        assert least <= tile.columns < max(2 * k_max, least + 1)
        assert least <= tile.depth < max(2 * d_model, least + 1)


@pytest.mark.parametrize("max_rows", [1, 8, 9, 512, 1024, 2049])
def test_every_kernel_is_compiled_at_start(compiler: Executor, max_rows: int) -> None:
    """No row count that the buffers have room for needs a tile that was not compiled.

    A kernel that is compiled when it is first called would be so in a graph's capture.
    """
    at_start = compiler.submit(compiled.rows_of_tiles, max_rows).result()
    compiled_tiles = compiler.submit(compiled.tiles, 128, 4096, at_start).result()
    needed = compiler.submit(compiled.tiles, 128, 4096, range(1, max_rows + 1)).result()

    assert set(needed) == set(compiled_tiles)
    assert max(at_start) <= max_rows
