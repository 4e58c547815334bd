"""Compiles the CUDA kernels for a GPU that is not here, in a process of its own."""

import multiprocessing
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

ROWS = (1, 9, 65, 1025)
"""Row counts that reach every tile."""

_FLOAT, _HALF = "*fp32", "*bf16"
_POINTERS = {
    "hidden": _HALF,
    "residual": _HALF,
    "weight": _FLOAT,
    "bias": _FLOAT,
    "n_columns": "*i32",
    "columns": _FLOAT,
    "squared_norms": _FLOAT,
}
# Multiples of 16 in every model, which Triton sees at a call.
_EVEN = ("max_rows", "d_model", "k_max", "hidden_row", "residual_row")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a kernel's machine code is like."""

    is_rounding: bool
    n_spilled_bytes: int
    shared_bytes: int


def start() -> ProcessPoolExecutor:
    """Return a pool of one process, which alone imports Triton."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def tiles(k_max: int, d_model: int) -> list[Any]:
    """Return the tile of each of `ROWS`."""
    from service.capture.tap_cuda import tile_for

    return [tile_for(n, k_max, d_model) for n in ROWS]


def compile_tiles(architecture: int) -> list[Compiled]:
    """Compile the projection in each tile for sm_*architecture*, k 128, d 4096."""
    return [_compile(tile, architecture) for tile in tiles(128, 4096)]


def _compile(tile: Any, architecture: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from service.capture.tap_cuda import project_kernel

    constants = {
        "HAS_RESIDUAL": True,
        "IS_DOT": tile.is_dot,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": tile.depth,
        "hidden_place": 1,
        "residual_place": 1,
    }
    names = project_kernel.arg_names
    even = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=project_kernel,
        signature={
            n: "constexpr" if n in constants else _POINTERS.get(n, "i32") for n in names
        },
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): even for n in (*_POINTERS, *_EVEN)},
    )
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": tile.n_warps},
    )
    ptx = kernel.asm["ptx"]
    return Compiled(
        is_rounding="mma" in ptx,
        n_spilled_bytes=_n_spilled(ptx, architecture),
        shared_bytes=kernel.metadata.shared,
    )


def _n_spilled(ptx: str, architecture: int) -> int:
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run(
            [
                get_ptxas(architecture).path,
                "--verbose",
                f"--gpu-name={target[1]}",
                file.name,
                "--output-file=/dev/null",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    spilled = re.findall(r"(\d+) bytes spill", said)
    assert spilled, said
    return sum(map(int, spilled))
