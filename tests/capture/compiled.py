"""Compiles the CUDA kernels for a GPU that is not here, in a process of its own."""

import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

_FLOAT, _HALF = "*fp32", "*bf16"
_POINTERS = {
    "hidden": _HALF,
    "residual": _HALF,
    "weight": _FLOAT,
    "bias": _FLOAT,
    "n_columns": "*i32",
    "columns": _FLOAT,
    "squared_norms": _FLOAT,
    "activations": _FLOAT,
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


def tiles(k_max: int, d_model: int, rows: Sequence[int]) -> list[Any]:
    """Return the tile of each of *rows*."""
    from service.capture.tap_cuda import tile_for

    return [tile_for(n, k_max, d_model) for n in rows]


def rows_of_tiles(max_rows: int) -> list[int]:
    """Return the row counts for which kernels are compiled at start."""
    from service.capture import tap_cuda

    return tap_cuda.rows_of_tiles(max_rows)


def compile_all(architecture: int) -> list[Compiled]:
    """Compile every kernel for sm_*architecture*, k_max 128 and d_model 4096."""
    from service.capture.tap_cuda import copy_kernel, project_kernel

    found = [
        _compile(
            project_kernel,
            {
                "IS_DOT": tile.is_dot,
                "ROWS": tile.rows,
                "COLUMNS": tile.columns,
                "DEPTH": tile.depth,
            },
            tile.n_warps,
            architecture,
        )
        for tile in tiles(128, 4096, rows_of_tiles(8192))
    ]
    return [*found, _compile(copy_kernel, {"DEPTH": 1024}, 4, architecture)]


def _compile(
    kernel: Any, sizes: dict[str, int], n_warps: int, architecture: int
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        "HAS_RESIDUAL": True,
        "hidden_place": 1,
        "residual_place": 1,
        **sizes,
    }
    names = kernel.arg_names
    even = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature={
            n: "constexpr" if n in constants else _POINTERS.get(n, "i32") for n in names
        },
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): even for n in (*_POINTERS, *_EVEN) if n in names},
    )
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": n_warps},
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
