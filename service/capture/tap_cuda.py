"""The tap's operators on CUDA: one Triton kernel a hook point, nothing allocated.

Rule 1: the launch grid follows from shapes alone, so that a CUDA graph can replay it.
What changes with the bank (weights, how many columns are in use) is read from buffers.

Rule 2: nothing is tuned while the model runs. `tile_for` is a pure function, and
`compile_kernels` has every kernel compiled before the first graph is captured.

Importing this module registers the kernels; it needs Triton.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from service.capture.tap import TapBuffers, implement


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """
    What one program of the projection computes, and how.

    *rows* by *columns* results, reading *depth* of d_model at a time. With *is_dot*
    by `tl.dot`; without, products are summed at the end: for the few rows of a
    decoding step, whose cost is reading the weights once.
    """

    rows: int
    columns: int
    depth: int
    is_dot: bool
    n_warps: int


# By the most rows that they are for. A small step still has a program for each few
# columns, and a large one reads weights seldom. None spills registers or takes more
# than 48 KiB of shared memory, which every GPU has. Reasoned, not yet timed.
_TILES = (
    (8, Tile(rows=1, columns=4, depth=1024, is_dot=False, n_warps=4)),
    (64, Tile(rows=4, columns=4, depth=256, is_dot=False, n_warps=4)),
    (1024, Tile(rows=32, columns=32, depth=32, is_dot=True, n_warps=4)),
)
_LARGE = Tile(rows=64, columns=32, depth=32, is_dot=True, n_warps=4)
_COPY_DEPTH = 1024
_DOT_LEAST = 16  # What `tl.dot` takes on every architecture.


def tile_for(n_rows: int, k_max: int, d_model: int) -> Tile:
    """Return how a step of *n_rows* is cut; a function of shapes alone."""
    tile = next((t for most, t in _TILES if n_rows <= most), _LARGE)
    least = _DOT_LEAST if tile.is_dot else 1
    return Tile(
        rows=tile.rows,
        columns=_at_most(tile.columns, k_max, least),
        depth=_at_most(tile.depth, d_model, least),
        is_dot=tile.is_dot,
        n_warps=tile.n_warps,
    )


def rows_of_tiles(max_rows: int) -> list[int]:
    """Return the smallest row count of each tile that up to *max_rows* rows use."""
    return [1, *(most + 1 for most, _ in _TILES if most < max_rows)]


def _at_most(size: int, needed: int, least: int) -> int:
    return max(least, min(size, 1 << (needed - 1).bit_length()))


@triton.jit
def _load_stream(  # type: ignore[no-untyped-def]
    hidden,
    residual,
    rows,
    places,
    mask,
    hidden_row,
    hidden_place,
    residual_row,
    residual_place,
    HAS_RESIDUAL: tl.constexpr,  # noqa: N803 - Triton's spelling of a constant
):
    """Return the residual stream at (*rows*, *places*), summed in float32."""
    at = rows[:, None] * hidden_row + places[None, :] * hidden_place
    stream = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = rows[:, None] * residual_row + places[None, :] * residual_place
        stream += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    return stream


# `site` and `n_rows` differ from call to call: specialised on, each value that is 1 or
# a multiple of 16 would be compiled when it first comes, inside a graph's capture.
@triton.jit(do_not_specialize=["site", "n_rows"])
def project_kernel(  # type: ignore[no-untyped-def]
    hidden,
    residual,
    weight,
    bias,
    n_columns,
    columns,
    squared_norms,
    site,
    n_rows,
    max_rows,
    d_model,
    k_max,
    hidden_row,
    hidden_place,
    residual_row,
    residual_place,
    HAS_RESIDUAL: tl.constexpr,  # noqa: N803
    IS_DOT: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    """Write ROWS by COLUMNS of ``x W^T + b``, and with the first columns ``|x|^2``."""
    site = site.to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ks = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_first = tl.program_id(1) == 0
    used = tl.load(n_columns + site)
    is_row, is_used = rows < n_rows, ks < used
    # Columns that no detector reads are zero, at no more than the cost of writing it.
    end = tl.where(is_first | (tl.program_id(1) * COLUMNS < used), d_model, 0)
    squares = tl.zeros((ROWS, DEPTH), dtype=tl.float32)
    if IS_DOT:
        found = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    else:
        found = tl.zeros((ROWS, COLUMNS, DEPTH), dtype=tl.float32)
    for start in range(0, end, DEPTH):
        places = start + tl.arange(0, DEPTH)
        is_place = places < d_model
        x = _load_stream(
            hidden,
            residual,
            rows,
            places,
            is_row[:, None] & is_place[None, :],
            hidden_row,
            hidden_place,
            residual_row,
            residual_place,
            HAS_RESIDUAL,
        )
        squares += x * x
        w = tl.load(
            weight + (site * k_max + ks)[:, None] * d_model + places[None, :],
            mask=is_used[:, None] & is_place[None, :],
            other=0.0,
        )
        if IS_DOT:
            # ieee: TF32 would keep 10 bits of a weight's 23.
            found = tl.dot(x, tl.trans(w), found, input_precision="ieee")
        else:
            found += x[:, None, :] * w[None, :, :]
    if not IS_DOT:
        found = tl.sum(found, axis=2)
    found += tl.load(bias + site * k_max + ks, mask=is_used, other=0.0)[None, :]
    # An infinite activation times no weight is NaN, and this column is nobody's.
    found = tl.where(is_used[None, :], found, 0.0)
    tl.store(
        columns + (site * max_rows + rows)[:, None] * k_max + ks[None, :],
        found,
        mask=is_row[:, None] & (ks < k_max)[None, :],
    )
    if is_first:
        total = tl.sum(squares, axis=1)
        tl.store(squared_norms + site * max_rows + rows, total, mask=is_row)


@triton.jit(do_not_specialize=["site", "n_rows"])
def copy_kernel(  # type: ignore[no-untyped-def]
    hidden,
    residual,
    activations,
    squared_norms,
    site,
    n_rows,
    max_rows,
    d_model,
    hidden_row,
    hidden_place,
    residual_row,
    residual_place,
    HAS_RESIDUAL: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    """Write one row of activations and its ``|x|^2``."""
    site = site.to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    is_row = rows < n_rows
    squares = tl.zeros((1, DEPTH), dtype=tl.float32)
    for start in range(0, d_model, DEPTH):
        places = start + tl.arange(0, DEPTH)
        mask = is_row[:, None] & (places < d_model)[None, :]
        x = _load_stream(
            hidden,
            residual,
            rows,
            places,
            mask,
            hidden_row,
            hidden_place,
            residual_row,
            residual_place,
            HAS_RESIDUAL,
        )
        squares += x * x
        at = (site * max_rows + rows)[:, None] * d_model + places[None, :]
        tl.store(activations + at, x, mask=mask)
    total = tl.sum(squares, axis=1)
    tl.store(squared_norms + site * max_rows + rows, total, mask=is_row)


def project(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    n_columns: torch.Tensor,
    columns: torch.Tensor,
    squared_norms: torch.Tensor,
    site: int,
) -> None:
    """`innerwatch::project` on CUDA."""
    _, max_rows, k_max = columns.shape
    n_rows, d_model = min(hidden.shape[0], max_rows), hidden.shape[1]
    if n_rows == 0:
        return
    tile = tile_for(n_rows, k_max, d_model)
    other = hidden if residual is None else residual
    grid = (triton.cdiv(n_rows, tile.rows), triton.cdiv(k_max, tile.columns))
    project_kernel[grid](
        hidden,
        other,
        weight,
        bias,
        n_columns,
        columns,
        squared_norms,
        site,
        n_rows,
        max_rows,
        d_model,
        k_max,
        *hidden.stride(),
        *other.stride(),
        HAS_RESIDUAL=residual is not None,
        IS_DOT=tile.is_dot,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        num_warps=tile.n_warps,
    )


def copy(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    activations: torch.Tensor,
    squared_norms: torch.Tensor,
    site: int,
) -> None:
    """`innerwatch::copy` on CUDA."""
    _, max_rows, d_model = activations.shape
    n_rows = min(hidden.shape[0], max_rows)
    if n_rows == 0:
        return
    other = hidden if residual is None else residual
    copy_kernel[(n_rows,)](
        hidden,
        other,
        activations,
        squared_norms,
        site,
        n_rows,
        max_rows,
        d_model,
        *hidden.stride(),
        *other.stride(),
        HAS_RESIDUAL=residual is not None,
        DEPTH=_at_most(_COPY_DEPTH, d_model, 1),
        num_warps=4,
    )


def compile_kernels(buffers: TapBuffers, dtype: torch.dtype) -> None:
    """
    Run each kernel that *dtype* activations can need, and poison what it wrote.

    Triton compiles at a kernel's first call, which in a graph's capture would fail.
    """
    _, max_rows, _ = buffers.values.shape
    for n_rows in rows_of_tiles(max_rows):
        hidden = torch.zeros(
            n_rows, buffers.d_model, dtype=dtype, device=buffers.values.device
        )
        for residual in (None, hidden):
            buffers.write(hidden, residual, site=0)
    buffers.poison(max_rows)


implement("project", project, "CUDA")
implement("copy", copy, "CUDA")
