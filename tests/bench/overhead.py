"""What the plugin costs: vLLM with and without it, alternately.

usage: python -m tests.bench.overhead [--pairs 5] [--requests 64] [--compile] [--pin]
           [--medium]

Each run is a fresh engine on the organism that generates the same tokens, timed after a
warm-up round. Prints the ratio with to without, of throughput and of CPU time of the
engine's processes, as median and spread over the pairs. The daemon's own CPU time is
another process's and is printed apart. A run that lost a token is no measurement.

With --medium the model is a Llama of 158 M parameters with random weights, watched by
64 linear detectors on 3 hook points, instead of the organism with two.

With --pin the engine computes with one thread on one core, and the daemon runs on
another: what the plugin costs where the daemon has a core to itself.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import ORGANISM
from tests.gpu.shapes import MEDIUM, write_detectors, write_model

N_TOKENS = 48

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def main() -> None:
    """Run the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="torch.compile on")
    parser.add_argument("--pin", action="store_true", help="a core each")
    parser.add_argument("--medium", action="store_true", help="a larger model")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_engine(args, *json.loads(args.child))))
        return
    pairs = []
    with tempfile.TemporaryDirectory(prefix="innerwatch-") as name:
        folder = Path(name)
        model, hook_points = ORGANISM, list(HOOK_POINTS)
        if args.medium:
            model, hook_points = folder / "model", MEDIUM.hook_points
            write_model(model, MEDIUM, "float32")
            write_detectors(folder / "bundle", model, MEDIUM, "float32")
        else:
            make_bundle(folder / "bundle", ORGANISM)
        daemon = Daemon(folder)
        daemon.start()
        assert daemon.process is not None
        process = psutil.Process(daemon.process.pid)
        if args.pin:
            first, second, *_ = psutil.Process().cpu_affinity()
            process.cpu_affinity([second])
            psutil.Process().cpu_affinity([first])  # The engines inherit it.
        try:
            for index in range(args.pairs):
                # Which comes first alternates too, so that a drift cancels out.
                order = (False, True) if index % 2 == 0 else (True, False)
                capture = {"hook_points": hook_points, "address": daemon.listen}
                found = {
                    tapped: run_child(args, model, capture if tapped else None)
                    for tapped in order
                }
                pairs.append((found[False], found[True]))
                print(
                    f"pair {index + 1}: without {found[False]}, with {found[True]}",
                    flush=True,
                )
            status = daemon.wait_for(lambda s: s.n_live_requests == 0, 60)
            times = process.cpu_times()
        finally:
            daemon.signal(signal.SIGKILL)
    lost = {r: n for r, n in status.n_tokens_lost.items() if n}
    if lost:
        sys.exit(f"no measurement: tokens were lost: {lost}")
    for key, what in (("tokens_per_second", "throughput"), ("cpu_seconds", "CPU time")):
        ratios = sorted(tapped[key] / untapped[key] for untapped, tapped in pairs)
        print(
            f"{what}: with / without = {statistics.median(ratios):.3f} (median of "
            f"{len(ratios)} pairs, {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )
    n_scored = status.n_tokens_scored
    used = (times.user + times.system) * 1e6 / n_scored
    print(f"daemon: {n_scored} tokens scored, none lost, {used:.0f} us of CPU a token")


def run_child(
    args: argparse.Namespace, model: Path, capture: dict[str, Any] | None
) -> dict[str, float]:
    """Run one engine in a process of its own, tapped if there is *capture*."""
    output = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.bench.overhead",
            f"--requests={args.requests}",
            f"--rounds={args.rounds}",
            *(["--compile"] if args.compile else []),
            "--child",
            json.dumps([str(model), capture]),
        ],
        env={
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # The engine's work in the process that is timed.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            **(_ONE_THREAD if args.pin else {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    ).stdout
    found: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return found


def run_engine(args: argparse.Namespace, model: str, capture: Any) -> dict[str, float]:
    """Generate with one engine; return tokens a second and CPU seconds."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="float32",
        load_format="auto" if model == str(ORGANISM) else "dummy",
        skip_tokenizer_init=True,
        enforce_eager=not args.compile,
        max_model_len=512,
        max_num_seqs=32,
        enable_prefix_caching=False,
        **({"additional_config": {"innerwatch": capture}} if capture else {}),
    )
    time.sleep(3)  # A tapped engine connects meanwhile, and gets its bank.
    prompts: Any = [
        {"prompt_token_ids": [5 + (i * 7 + k) % 400 for k in range(16 + i % 64)]}
        for i in range(args.requests)
    ]
    sampling = SamplingParams(
        temperature=0, max_tokens=N_TOKENS, ignore_eos=True, detokenize=False
    )
    llm.generate(prompts, sampling, use_tqdm=False)
    n_prompt = sum(len(p["prompt_token_ids"]) for p in prompts)
    before, began = cpu_seconds(), time.monotonic()
    for _ in range(args.rounds):
        llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.monotonic() - began
    n_tokens = args.rounds * (n_prompt + len(prompts) * N_TOKENS)
    return {
        "tokens_per_second": round(n_tokens / seconds, 1),
        "cpu_seconds": round(cpu_seconds() - before, 3),
    }


def cpu_seconds() -> float:
    """Return the CPU time of this process and all processes below it, so far."""
    this = psutil.Process()
    total = 0.0
    for process in [this, *this.children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system
    return total


if __name__ == "__main__":
    main()
