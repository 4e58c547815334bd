"""Rows through vLLM against transformers on the same weights; see run.py.

On CUDA with torch.compile and FULL_AND_PIECEWISE graphs, in bfloat16, and once in
float32, where a row of another token can not hide behind the rounding.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.engines import HOOK_POINTS, ORGANISM, EngineRun, bank_arrays, run_engine
from tests.e2e.rows import reference_activations, rows_at
from tests.e2e.test_rows import compare_run
from tests.gpu.finding import Finding, save

BARS = {"float32": 1e-4, "bfloat16": 0.015}
"""
Of the norm. In bfloat16 transformers is up to 0.005 from float32 on this model. A row
of the token before is 0.001 and more away in 99 of 100 cases, 0.01 in every third.
"""


def main() -> None:
    """Run the engines and write the findings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--runner", choices=("1", "2"), default="2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    findings: list[Finding] = []
    trials = [
        ("pushdown", "block", "float32"),
        ("pushdown", "block", "bfloat16"),
        ("pushdown", "norm", "bfloat16"),
        ("activations", "block", "bfloat16"),
    ]
    for mode, tap_point, dtype in trials[: 1 if args.tiny else None]:
        what = f"{mode} at the {tap_point}, {dtype}"
        try:
            with tempfile.TemporaryDirectory(prefix="innerwatch-") as folder:
                run = run_engine(
                    Path(folder) / "run",
                    mode=mode,
                    n_requests=4 if args.tiny else 64,
                    capture={"tap_point": tap_point},
                    **arguments(args.device, args.runner, dtype),
                )
            findings += [
                finding(run, site, args.runner, what, dtype) for site in (0, 1)
            ]
        except (AssertionError, KeyError, ValueError) as error:
            findings.append(did_not_run(args.runner, what, error))
        save(args.out, findings)


def arguments(device: str, runner: str, dtype: str) -> dict[str, Any]:
    """Return what `run_engine` is given on *device*."""
    if device == "cpu":
        return {"enforce_eager": True, "dtype": dtype}
    found: dict[str, Any] = {
        "enforce_eager": False,
        "dtype": dtype,
        "skip_tokenizer_init": True,
        "gpu_memory_utilization": 0.3,
        "compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
        "environment": {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner) - 1)},
    }
    if dtype == "float32":
        found["attention_backend"] = "TRITON_ATTN"  # FlashAttention has half only.
    return found


def did_not_run(runner: str, what: str, error: Exception) -> Finding:
    """Return the failure of one engine; the next has its turn."""
    last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return Finding(
        part=f"rows-v{runner}", what=what, found=last[0][:200], bar="runs", is_met=False
    )


def finding(run: EngineRun, site: int, runner: str, what: str, dtype: str) -> Finding:
    """Return how the rows at hook point *site* compare."""
    counted = compare_run(run, site)
    worst = worst_distance(run, site)
    wrong = (
        counted.n_missing,
        counted.n_unasked,
        counted.n_wrong_token,
        counted.n_repeated,
    )
    is_met = wrong == (0, 0, 0, 0) and worst <= BARS[dtype] and counted.n_rows > 0
    return Finding(
        part=f"rows-v{runner}",
        what=f"{what}, {HOOK_POINTS[site]}",
        found=f"{counted.n_rows} rows; missing, unasked, other token, twice: "
        f"{wrong}; worst {worst:.1e} of the norm",
        bar=f"0, 0, 0, 0; {BARS[dtype]:g}",
        is_met=is_met,
    )


def worst_distance(run: EngineRun, site: int, digest: str | None = None) -> float:
    """
    Return the worst value's distance from the reference, relative to what it could be.

    That is the activation's norm, times the column's weight's: unlike the value itself
    no small number. With *digest*, of the batches of that bank alone.
    """
    batches = [b for b in run.batches if digest in (None, b.bank_digest)]
    rows, _ = rows_at(batches, HOOK_POINTS[site])
    layer = int(HOOK_POINTS[site].split(".")[1])
    sequences = {
        r["request_id"]: run.sequence(r["request_id"])
        for r in run.requests
        if r["request_id"] in rows
    }
    worst = 0.0
    for name, expected in reference_activations(ORGANISM, sequences, layer).items():
        scale = np.linalg.norm(expected, axis=1, keepdims=True)
        if run.bank is not None:
            weight, bias = bank_arrays(run.bank, site)
            expected = expected @ weight.T + bias
            scale = scale * np.linalg.norm(weight, axis=1)
        # An aborted request may have run beyond the last token that came back.
        seen = [p for p in rows[name] if p < len(expected)]
        found = np.stack([rows[name][p][1] for p in seen])
        error = np.abs(found - expected[seen]) / scale[seen]
        worst = max(worst, float(error.max()))
    return worst


if __name__ == "__main__":
    main()
