"""Throughput of vLLM untouched, watched, and with what else reads activations.

All engines are up at once, each with its share of the GPU's memory, and take turns: a
round of one, the same round of the next, in another order each time. 64 linear
detectors on 3 hook points and a real daemon; peers are forward hooks, which need
enforce_eager, and vLLM's own extract_hidden_states. See run.py.

On a CPU: python -m tests.gpu.overhead --device cpu --medium --runner 1 --out FILE.
Engines then compute with one thread on the first core, and the daemon has the others.
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
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.daemons import Daemon
from tests.gpu.finding import Finding, save
from tests.gpu.shapes import (
    LLAMA_8B,
    MEDIUM,
    TINY,
    Shape,
    write_detectors,
    write_model,
)

MODES = ("untouched", "innerwatch", "forward hooks, eager", "extract_hidden_states")
BAR = 0.99
STOP_AFTER_SECONDS = 480.0  # A GPU is lent for minutes.


@dataclass(frozen=True, kw_only=True)
class Round:
    """What an engine is asked for at once, *repeats* times."""

    phase: str
    batch: int
    n_prompt: int
    n_generate: int
    repeats: int

    @property
    def n_tokens(self) -> int:
        """Tokens that pass through the layers."""
        each = self.n_prompt if self.phase == "prefill" else self.n_generate
        return self.batch * each * self.repeats


@dataclass(frozen=True, kw_only=True)
class Size:
    """
    A model, and what its engines are asked for.

    A round at each of *batches* is of *n_tokens* generated, or 4 *n_tokens* read, at
    least *n_prefills* times; a step has *max_tokens* at most.
    """

    shape: Shape
    batches: tuple[int, ...]
    n_tokens: int
    n_prefills: int
    max_tokens: int
    enforce_eager: bool = False

    def rounds(self) -> list[Round]:
        """Return decode and prefill at each batch size."""
        found = []
        for batch in self.batches:
            n, again = self.n_tokens, max(1, self.n_prefills // batch)
            found += [
                Round(phase="decode", batch=batch, n_prompt=8, n_generate=n, repeats=1),
                Round(
                    phase="prefill",
                    batch=batch,
                    n_prompt=4 * n,
                    n_generate=1,
                    repeats=again,
                ),
            ]
        return found


FULL_SIZE = Size(
    shape=LLAMA_8B,
    batches=(1, 8, 64, 256),
    n_tokens=128,
    n_prefills=16,
    max_tokens=8192,
)
MEDIUM_SIZE = Size(
    shape=MEDIUM, batches=(1, 8), n_tokens=32, n_prefills=1, max_tokens=1024
)
TINY_SIZE = Size(
    shape=TINY,
    batches=(1, 3),
    n_tokens=8,
    n_prefills=1,
    max_tokens=256,
    enforce_eager=True,
)


@dataclass(kw_only=True)
class Engine:
    """An engine's process, and what it took in each round."""

    mode: str
    process: "subprocess.Popen[str]"
    log: Path
    seconds: dict[Round, list[float]] = field(default_factory=lambda: defaultdict(list))

    def ask(self, asked: Round) -> None:
        """Have it run a round."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(asked)) + "\n")
        self.process.stdin.flush()
        self.seconds[asked].append(float(self.answer()))

    def answer(self) -> str:
        """Return its next line; an engine that has ended is an error."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self.mode} ended: {why(self.log)}")
        return line


def main() -> None:
    """Start the engines, let them take turns, and write the findings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--medium", action="store_true", help="what a CPU serves")
    parser.add_argument("--runner", choices=("1", "2"), default="2")
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument(
        "--memory", type=float, default=0.22, help="share of the GPU an engine has"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="innerwatch-") as name:
        folder = Path(name)
        size = size_of(args)
        shape = size.shape
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        write_model(folder / "model", shape, dtype)
        write_detectors(folder / "bundle", folder / "model", shape, dtype)
        daemon = Daemon(folder)
        daemon.start()
        if args.device == "cpu":
            set_apart(daemon)
        engines: list[Engine] = []
        failed: list[Finding] = []
        try:
            for mode in args.mode or MODES:
                try:
                    engines.append(start(mode, folder, size, dtype, args))
                except RuntimeError as error:
                    failed.append(did_not_run(mode, error, args))
                    save(args.out, failed)
            asked = size.rounds()
            failed += take_turns(engines, asked[:2], 0, args)
            for engine in engines:
                engine.seconds.clear()  # They were for warming up.
            for turn in range(1 if args.tiny else args.rounds):
                failed += take_turns(engines, asked, turn, args)
                save(args.out, [*compare(engines, args), *failed])
                is_lent = args.device == "cuda"
                if is_lent and time.monotonic() - began > STOP_AFTER_SECONDS:
                    break
            lost = tokens_lost(daemon, args)
            save(args.out, [*compare(engines, args), *failed, lost])
        finally:
            for engine in engines:
                # And what vLLM has started for it.
                with suppress(ProcessLookupError):
                    os.killpg(engine.process.pid, signal.SIGKILL)
                engine.process.wait()
            daemon.signal(signal.SIGKILL)


def size_of(args: argparse.Namespace) -> Size:
    """Return what is asked for; nobody is asked for two."""
    if args.tiny:
        return TINY_SIZE
    return MEDIUM_SIZE if args.medium else FULL_SIZE


def set_apart(daemon: Daemon) -> None:
    """Give the engines, which inherit it, one core, and the daemon the others."""
    assert daemon.process is not None
    first, *others = psutil.Process().cpu_affinity()
    psutil.Process(daemon.process.pid).cpu_affinity(others or [first])
    psutil.Process().cpu_affinity([first])
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def take_turns(
    engines: list[Engine], asked: list[Round], turn: int, args: argparse.Namespace
) -> list[Finding]:
    """Have each engine run each round; one that ends is taken out, and returned."""
    failed = []
    for one in asked:
        for engine in engines[turn % 2 :] + engines[: turn % 2]:
            try:
                engine.ask(one)
            except (RuntimeError, OSError) as error:
                engines.remove(engine)
                failed.append(did_not_run(engine.mode, error, args))
    return failed


def why(log: Path) -> str:
    """Return the last line of *log* that names an error, or its last."""
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    errors = [line for line in lines if "Error" in line and "EngineDead" not in line]
    return (errors or lines)[-1].rpartition("] ")[2][:200]


def start(
    mode: str, folder: Path, size: Size, dtype: str, args: argparse.Namespace
) -> Engine:
    """
    Start an engine and wait until it is ready.

    Raises:
        RuntimeError: It ended before.
    """
    place = folder / mode.replace(",", "").replace(" ", "-")
    place.mkdir()
    (place / "plan.json").write_text(
        json.dumps(
            {
                "engine": arguments(mode, folder, size, dtype, args),
                "hooked_layers": size.shape.watched
                if mode.startswith("forward")
                else [],
                "settle_seconds": 4 if mode == "innerwatch" else 0,
                "clear": str(place / "states") if mode.startswith("extract") else "",
            }
        )
    )
    log = args.out.with_suffix(f".{place.name}.log")
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.engine", str(place / "plan.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "VLLM_USE_V2_MODEL_RUNNER": str(int(args.runner) - 1),
                # For the function that puts forward hooks on.
                "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            },
        )
    engine = Engine(mode=mode, process=process, log=log)
    assert engine.answer() == "ready"
    return engine


def arguments(
    mode: str, folder: Path, size: Size, dtype: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Return vLLM's arguments for *mode*: the same but for what the mode needs."""
    found: dict[str, Any] = {
        "model": str(folder / "model"),
        "load_format": "dummy",
        "dtype": dtype,
        "skip_tokenizer_init": True,
        "enforce_eager": mode.startswith("forward") or size.enforce_eager,
        "enable_prefix_caching": False,
        "max_model_len": min(1024, size.max_tokens),
        "max_num_seqs": max(4, *size.batches),
        "max_num_batched_tokens": size.max_tokens,
    }
    if args.device == "cuda":
        found["gpu_memory_utilization"] = args.memory
    if mode == "innerwatch":
        settings = {
            "hook_points": size.shape.hook_points,
            "address": f"unix:{folder}/innerwatch.sock",
        }
        found["additional_config"] = {"innerwatch": settings}
    if mode == "extract_hidden_states":
        # Its layers are counted from the embedding on.
        layers = [layer + 1 for layer in size.shape.watched]
        config = {"eagle_aux_hidden_state_layer_ids": layers}
        found["speculative_config"] = {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": config},
        }
        states = folder / "extract_hidden_states" / "states"
        states.mkdir()
        found["kv_transfer_config"] = {
            "kv_connector": "ExampleHiddenStatesConnector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(states)},
        }
    return found


def compare(engines: list[Engine], args: argparse.Namespace) -> list[Finding]:
    """Return a line a round: tokens a second, and each mode's ratio to untouched."""
    by_mode = {engine.mode: engine for engine in engines}
    base = by_mode.pop("untouched", None)
    if base is None:
        return []
    found = []
    for asked, seconds in base.seconds.items():
        rate = asked.n_tokens / statistics.median(seconds)
        said = [f"untouched {rate:.0f} tokens/s"]
        is_met = None
        for mode, engine in by_mode.items():
            turns = zip(seconds, engine.seconds[asked], strict=False)
            ratios = sorted(before / after for before, after in turns)
            if not ratios:
                continue
            middle = statistics.median(ratios)
            said.append(f"{mode} {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
            if mode == "innerwatch" and size_of(args) is FULL_SIZE:
                is_met = middle >= BAR
        found.append(
            Finding(
                part=f"overhead-v{args.runner}",
                what=f"{asked.phase}, batch {asked.batch}, {len(seconds)} turns",
                found="; ".join(said),
                bar=f"innerwatch at least {BAR} on a GPU",
                is_met=is_met,
            )
        )
    return found


def tokens_lost(daemon: Daemon, args: argparse.Namespace) -> Finding:
    """Return what the daemon scored and lost: a run that lost is no measurement."""
    status = daemon.wait_for(lambda s: s.n_live_requests == 0, 60)
    lost = {reason: n for reason, n in status.n_tokens_lost.items() if n}
    return Finding(
        part=f"overhead-v{args.runner}",
        what="tokens that the daemon scored, and lost",
        found=f"{status.n_tokens_scored} scored, lost: {lost or 0}",
        bar="none lost",
        is_met=not lost and status.n_tokens_scored > 0,
    )


def did_not_run(mode: str, error: Exception, args: argparse.Namespace) -> Finding:
    """Return that an engine ended: no bar is missed by a peer's failure."""
    return Finding(
        part=f"overhead-v{args.runner}",
        what=f"{mode} did not run",
        found=str(error),
        is_met=False if mode in ("untouched", "innerwatch") else None,
    )


if __name__ == "__main__":
    main()
