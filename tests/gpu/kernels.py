"""The kernels against the plain operators, and what they take; see run.py.

On CUDA also inside a CUDA graph that is replayed with other inputs and another bank.
On the CPU Triton interprets, at small sizes, and nothing is timed.
"""

import argparse
import copy
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from service.capture.tap import TapBuffers, use_kernels
from tests.gpu.finding import Finding, save

BAR = 1e-5
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is tried."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    d_models: tuple[int, ...]


FULL = Sizes(
    rows=(1, 3, 8, 9, 17, 64, 65, 129, 256, 1024, 1025, 8192),
    columns=(5, 64, 128, 256),
    d_models=(300, 4096),
)
TINY = Sizes(rows=(1, 9, 65), columns=(5, 40), d_models=(72,))


def main() -> None:
    """Compare, time, and write the findings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Before Triton is first imported.
    device = torch.device(args.device)
    sizes = TINY if args.tiny else FULL
    torch.manual_seed(0)
    findings = [compare(sizes, device)]
    save(args.out, findings)
    if args.device == "cuda":
        findings.append(compare_in_graph(device))
        findings += timings(device)
        save(args.out, findings)


def make_buffers(n_rows: int, k: int | None, d_model: int, used: int) -> TapBuffers:
    """Return buffers on the CPU with a random bank."""
    buffers = TapBuffers.allocate(
        n_sites=2,
        max_rows=n_rows,
        d_model=d_model,
        k_max=k,
        device=torch.device("cpu"),
    )
    if k is not None:
        assert buffers.weight is not None
        assert buffers.bias is not None
        assert buffers.n_columns is not None
        buffers.weight.normal_()
        buffers.bias.normal_()
        buffers.n_columns.fill_(used)
    return buffers


def on(device: torch.device, buffers: TapBuffers) -> TapBuffers:
    """Return a copy of *buffers* on *device*."""
    moved = copy.deepcopy(buffers)
    for name, tensor in buffers.tensors().items():
        if tensor is not None:
            setattr(moved, name, tensor.to(device, copy=True))
    return moved


def cases(sizes: Sizes) -> Iterator[tuple[TapBuffers, torch.Tensor, torch.Tensor]]:
    """Yield buffers and two inputs, of every combination."""
    for d_model in sizes.d_models:
        for k in (None, *sizes.columns):
            for n_rows in sizes.rows:
                for dtype in DTYPES:
                    hidden, residual = torch.randn(2, n_rows, d_model).to(dtype)
                    used = 0 if k is None else max(1, 3 * k // 4)
                    yield make_buffers(n_rows, k, d_model, used), hidden, residual


def compare(sizes: Sizes, device: torch.device) -> Finding:
    """Return the worst difference, relative to what a column could at most be."""
    worst, n_cases = 0.0, 0
    for plain, hidden, residual in cases(sizes):
        for other in (None, residual):
            kernel = on(device, plain)
            given = None if other is None else other.to(device)
            write(kernel, hidden.to(device), given)
            plain.write(hidden, other, site=1)
            worst = max(worst, difference(kernel, plain))
            n_cases += 1
    return Finding(
        part="kernels",
        what=f"worst difference from the CPU operators, {n_cases} cases",
        found=f"{worst:.1e} of the norm",
        bar=f"{BAR:.0e}",
        is_met=worst <= BAR,
    )


def write(
    buffers: TapBuffers, hidden: torch.Tensor, residual: torch.Tensor | None
) -> None:
    """Call the kernels themselves: on the CPU the operators are the plain ones."""
    from service.capture import tap_cuda

    rows = buffers.values, buffers.squared_norms
    if buffers.weight is None:
        tap_cuda.copy(hidden, residual, *rows, 1)
        return
    assert buffers.bias is not None
    assert buffers.n_columns is not None
    bank = buffers.weight, buffers.bias, buffers.n_columns
    tap_cuda.project(hidden, residual, *bank, *rows, 1)


def difference(kernel: TapBuffers, plain: TapBuffers) -> float:
    """Return how far *kernel* is from *plain* at site 1, relative to the norms."""
    norms = plain.squared_norms[1]
    scale = norms.sqrt().unsqueeze(-1)
    if plain.weight is not None:
        scale = scale * plain.weight[1].norm(dim=-1)
    by_value = (kernel.values[1].cpu() - plain.values[1]).abs() / scale
    by_norm = (kernel.squared_norms[1].cpu() - norms).abs() / norms
    return max(float(by_value.max()), float(by_norm.max()))


def compare_in_graph(device: torch.device) -> Finding:
    """Capture once, replay with other inputs and another bank in the same buffers."""
    worst = 0.0
    for n_rows in (1, 16, 256, 2048):
        kernel = on(device, make_buffers(n_rows, 128, 4096, 64))
        use_kernels(kernel, torch.bfloat16)
        hidden, residual = torch.randn(2, n_rows, 4096, device=device).bfloat16()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kernel.write(hidden, residual, site=1)
        for used in (128, 3):
            plain = make_buffers(n_rows, 128, 4096, used)
            for name in ("weight", "bias", "n_columns"):
                getattr(kernel, name).copy_(getattr(plain, name))
            hidden.normal_()
            kernel.poison(n_rows)
            graph.replay()
            plain.write(hidden.cpu(), residual.cpu(), site=1)
            worst = max(worst, difference(kernel, plain))
    return Finding(
        part="kernels",
        what="the same from a replayed CUDA graph, two banks",
        found=f"{worst:.1e} of the norm",
        bar=f"{BAR:.0e}",
        is_met=worst <= BAR,
    )


def timings(device: torch.device) -> Iterator[Finding]:
    """Yield what one hook point takes, from replayed graphs of 20 calls."""
    for n_rows in (1, 8, 64, 256, 1024, 8192):
        said = []
        for used in (22, 128):
            buffers = on(device, make_buffers(n_rows, 128, 4096, used))
            use_kernels(buffers, torch.bfloat16)
            hidden, residual = torch.randn(2, n_rows, 4096, device=device).bfloat16()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(20):
                    buffers.write(hidden, residual, site=1)
            took = []
            for _ in range(20):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graph.replay()
                end.record()
                torch.cuda.synchronize()
                took.append(start.elapsed_time(end) * 1000 / 20)
            said.append(f"{statistics.median(took):.1f} us ({used} columns)")
        yield Finding(
            part="kernels",
            what=f"one hook point, {n_rows} rows of 4096 bfloat16",
            found=", ".join(said),
        )


if __name__ == "__main__":
    main()
