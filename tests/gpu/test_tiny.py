"""The GPU script runs, as far as a CPU can run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.finding import Finding, load, save, table
from tests.gpu.run import PARTS, ROOT
from tests.gpu.shapes import LLAMA_8B, TINY, Shape


def run(out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.run", f"--out={out}", *options],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def n_parameters(shape: Shape) -> int:
    """Count a Llama's weights, embedding and head apart."""
    head = shape.d_model // shape.n_heads
    attention = 2 * shape.d_model**2 + 2 * shape.d_model * shape.n_kv_heads * head
    block = attention + 3 * shape.d_model * shape.d_mlp + 2 * shape.d_model
    ends = 2 * shape.n_vocabulary * shape.d_model + shape.d_model
    return shape.n_layers * block + ends


def test_the_kernels_part_runs(tmp_path: Path) -> None:
    """The kernels' part compares them, writes what it found and prints it."""
    done = run(tmp_path, "--device=cpu", "--tiny", "--part=kernels")

    (found,) = load(tmp_path / "kernels.json")
    assert found.is_met
    assert "of the norm | 1e-05 | yes |" in done.stdout
    assert "no measurement" in done.stdout
    assert 0 == done.returncode


def test_a_part_that_fails_is_a_line_of_the_table(tmp_path: Path) -> None:
    """Without a GPU the CUDA part fails: its error is printed, the status is 1."""
    done = run(tmp_path, "--tiny", "--part=kernels", "--part=kernels")

    assert 1 == done.returncode
    assert 2 == done.stderr.count("kernels: failed (1)")
    (found,) = load(tmp_path / "kernels.json")
    assert "failed (1)" == found.what
    assert not found.is_met
    assert "**no**" in done.stdout


def test_a_table_is_of_all_that_was_found(tmp_path: Path) -> None:
    """Parts of several leases make one table; a bar without a verdict stays empty."""
    save(tmp_path / "a.json", [Finding(part="a", what="x|y", found="1")])
    save(tmp_path / "b.json", [Finding(part="b", what="z", found="2", is_met=True)])

    done = run(tmp_path, "--table", "--device=cpu", "--tiny")

    assert "| a | x/y | 1 |  |  |\n| b | z | 2 |  | yes |" in done.stdout
    assert (tmp_path / "table.md").read_text() == done.stdout
    assert "\n| a |" in table(load(tmp_path / "a.json"), {"device": "none"})


def test_the_benchmark_s_model_is_an_8b() -> None:
    """The shape has the 8.03 billion weights that a Llama 3 8B has."""
    assert 8_030_261_248 == n_parameters(LLAMA_8B)
    for shape in (LLAMA_8B, TINY):
        assert max(shape.watched) < shape.n_layers
        assert len(set(shape.watched)) == 3


@pytest.mark.vllm
@pytest.mark.parametrize("part", [p for p in PARTS if p.endswith("-v1")])
def test_every_part_runs_on_vllms_cpu_build(part: str, tmp_path: Path) -> None:
    """Rows, hot swap and overhead come through a real vLLM, and no bar is missed."""
    done = run(tmp_path, "--device=cpu", "--tiny", f"--part={part}")

    assert 0 == done.returncode, (tmp_path / f"{part}.log").read_text()[-3000:]
    assert load(tmp_path / f"{part}.json")
