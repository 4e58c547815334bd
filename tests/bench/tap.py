"""What the tap's CPU operators take, a step and hook point, on one core.

usage: OMP_NUM_THREADS=1 python -m tests.bench.tap [--seconds 0.3] [--tiny]

Beside each figure is that of the operator as it was first written (both inputs copied
to float32, the squares a tensor of their own, all columns of the buffer computed), so
that both are measured on one machine in one run, in turns. 22 of 128 columns are in
use: 64 detectors on 3 hook points.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from service.capture.tap import TapBuffers

_library = torch.library.Library("innerwatch_bench", "DEF")


def _before(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    bank: list[torch.Tensor],
    values: torch.Tensor,
    squared_norms: torch.Tensor,
) -> None:
    stream = hidden.float() + residual.float()
    n = min(stream.shape[0], values.shape[1])
    stream = stream[:n]
    if bank:
        weight, bias = bank
        torch.addmm(bias[0], stream, weight[0].t(), out=values[0, :n])
    else:
        values[0, :n].copy_(stream)
    torch.sum(stream * stream, dim=-1, out=squared_norms[0, :n])


_library.define(
    "before(Tensor hidden, Tensor residual, Tensor[] bank, Tensor(a!) values, "
    "Tensor(b!) squared_norms) -> ()"
)
_library.impl("before", _before, "CompositeExplicitAutograd")

K_MAX = 128
N_COLUMNS = 22


def main() -> None:
    """Measure each size and print a line of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="a figure")
    parser.add_argument("--tiny", action="store_true", help="the smallest size alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("us a call, median: now / as first written")
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for d_model in (256,) if args.tiny else (256, 4096):
                for n_rows in (1, 8) if args.tiny else (1, 8, 64, 512):
                    said = [
                        f"{name} {now:.1f} / {before:.1f}"
                        for name, (now, before) in {
                            "project": pair(K_MAX, n_rows, d_model, dtype, args),
                            "copy": pair(None, n_rows, d_model, dtype, args),
                        }.items()
                    ]
                    kind = str(dtype).removeprefix("torch.")
                    print(f"{kind} {n_rows} x {d_model}: {', '.join(said)}")


def pair(
    k_max: int | None,
    n_rows: int,
    d_model: int,
    dtype: torch.dtype,
    args: argparse.Namespace,
) -> tuple[float, float]:
    """Return microseconds of the operator now, and as first written."""
    hidden, residual = torch.randn(2, n_rows, d_model).to(dtype)
    buffers = TapBuffers.allocate(
        n_sites=1,
        max_rows=n_rows,
        d_model=d_model,
        k_max=k_max,
        device=torch.device("cpu"),
    )
    if buffers.n_columns is not None:
        buffers.n_columns.fill_(N_COLUMNS)

    def now() -> None:
        buffers.write(hidden, residual, site=0)

    tensors = [t for t in (buffers.weight, buffers.bias) if t is not None]

    def before() -> None:
        torch.ops.innerwatch_bench.before(
            hidden, residual, tensors, buffers.values, buffers.squared_norms
        )

    return measure([now, before], args.seconds)


def measure(functions: list[Callable[[], None]], seconds: float) -> tuple[float, float]:
    """Return the median microseconds of each, in turns for *seconds* each."""
    took: list[list[float]] = [[] for _ in functions]
    until = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < until or len(took[0]) < 5:
        for function, times in zip(functions, took, strict=True):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    now, before = (1e6 * statistics.median(times[1:]) for times in took)
    return now, before


if __name__ == "__main__":
    main()
