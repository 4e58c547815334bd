"""Real vLLM engines with the plugin armed, and what they sent."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from monitor.ranks import RankJoin, Told, joined
from monitor.records import StepBatch
from service.collecting import Receiver
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ORGANISM = ROOT / "deploy" / "demo" / "organism" / "model"
HOOK_POINTS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
N_COLUMNS = 5


class Recorder(Receiver):
    """Hands out a bank, and keeps all that the plugin sent."""

    def __init__(self, bank: pb.Bank | None) -> None:
        self.bank = bank
        self.hellos: list[pb.HelloRequest] = []
        self.batches: list[StepBatch] = []
        self.gaps: list[pb.Gap] = []

    def Hello(  # noqa: N802 - gRPC's spelling
        self, request: pb.HelloRequest, context: grpc.ServicerContext
    ) -> pb.HelloResponse:
        self.hellos.append(request)
        return pb.HelloResponse(bank=self.bank)

    def on_batch(self, batch: StepBatch, n_rows_expected: int) -> None:
        self.batches.append(batch)

    def on_gap(self, gap: pb.Gap) -> None:
        self.gaps.append(gap)


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What one engine was asked, what it answered and what the plugin sent."""

    requests: list[dict[str, Any]]
    tokens: dict[str, list[int]]
    batches: list[StepBatch]
    gaps: list[pb.Gap]
    bank: pb.Bank | None = field(default=None)

    def steps(self) -> list[StepBatch]:
        """What the monitor sees: steps of all ranks together, in order."""
        join: RankJoin[None] = RankJoin({batch.rank for batch in self.batches})
        steps = []
        for batch in self.batches:
            join.put(batch.rank, Told(record=batch, carried=[]))
            for group in join.ready():
                parts = [told.record for told in group.told]
                assert group.is_whole, parts
                steps.append(joined([p for p in parts if isinstance(p, StepBatch)]))
        assert not join.n_waiting
        return steps

    def sequence(self, name: str) -> list[int]:
        """Every token that passed through the layers: all but the last one drawn."""
        return [*self._asked(name)["prompt"], *self.tokens[name]][:-1]

    def is_aborted(self, name: str) -> bool:
        """Whether the answer *name* was to be cut short."""
        return self._asked(name)["abort_at_step"] is not None

    def _asked(self, name: str) -> dict[str, Any]:
        whole = name.rsplit("_", 1)[-1]
        return next(r for r in self.requests if r["request_id"] == whole)


def make_bank(d_model: int, seed: int = 0) -> pb.Bank:
    """Return a bank of random columns at both hook points."""
    rng = np.random.default_rng(seed)
    slices = []
    for hook_point in HOOK_POINTS:
        weight = rng.standard_normal((N_COLUMNS, d_model)).astype(np.float32)
        bias = rng.standard_normal(N_COLUMNS).astype(np.float32)
        slices.append(
            pb.BankSlice(
                hook_point=hook_point,
                n_columns=N_COLUMNS,
                d_model=d_model,
                weight=weight.tobytes(),
                bias=bias.tobytes(),
            )
        )
    return pb.Bank(digest="test-bank", slices=slices)


def bank_arrays(
    bank: pb.Bank, site: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight (N_COLUMNS, d_model) and bias (N_COLUMNS,) at hook point *site*."""
    part = bank.slices[site]
    weight = np.frombuffer(part.weight, dtype=np.float32)
    return weight.reshape(N_COLUMNS, -1), np.frombuffer(part.bias, dtype=np.float32)


def make_requests(n: int, seed: int, most_generated: int) -> list[dict[str, Any]]:
    """Return *n* random requests, 4 to 400 tokens, every eighth one aborted."""
    rng = np.random.default_rng(seed)
    return [
        {
            "request_id": f"r{i}",
            "prompt": rng.integers(5, 500, int(rng.integers(4, 400))).tolist(),
            "n_generate": int(rng.integers(1, most_generated)),
            "abort_at_step": int(rng.integers(5, 150)) if i % 8 == 3 else None,
        }
        for i in range(n)
    ]


def run_engine(
    folder: Path,
    *,
    mode: str,
    enforce_eager: bool,
    n_requests: int,
    is_tapped: bool = True,
    is_forced_compile: bool = False,
    most_generated: int = 12,
    cache_root: Path | None = None,
    requests: list[dict[str, Any]] | None = None,
    bank: pb.Bank | None = None,
    adapter: Path | None = None,
    recorder: Recorder | None = None,
    capture: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    interpreter: Sequence[str] = (sys.executable,),
    **engine_arguments: Any,
) -> EngineRun:
    """
    Run random requests through a real engine in a process of its own.

    *is_forced_compile* takes vLLM's own compile path with its cache, which the CPU
    platform switches off; *cache_root* holds that cache. *capture* is more of the
    plugin's settings, *environment* more of the process's variables, and *interpreter*
    the command that runs Python where another vLLM is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    d_model = json.loads((ORGANISM / "config.json").read_text())["hidden_size"]
    if mode == "pushdown":
        bank = bank or make_bank(d_model)
    recorder = recorder or Recorder(bank)
    server = grpc.server(
        ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)]
    )
    pb_grpc.add_CaptureServicer_to_server(recorder, server)
    # One for all engines of a test: the compile cache is keyed on it, as on the rest.
    address = f"unix:{folder.parent}/recorder.sock"
    server.add_insecure_port(address)
    server.start()
    requests = requests or make_requests(n_requests, 7, most_generated)
    engine: dict[str, Any] = {
        "model": str(ORGANISM),
        "dtype": "float32",
        "enforce_eager": enforce_eager,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        **engine_arguments,
    }
    if is_tapped:
        engine["additional_config"] = {
            "innerwatch": {
                "hook_points": list(HOOK_POINTS),
                "mode": mode,
                "address": address,
                **(capture or {}),
            }
        }
    if is_forced_compile:
        engine["worker_cls"] = "forced_compile_worker.ForcedCompileWorker"
    plan = {
        "engine": engine,
        "requests": requests,
        "settle_seconds": 2 if is_tapped else 0,
        "force_compile": is_forced_compile,
        "adapter": str(adapter) if adapter else None,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    given = os.environ.get("PYTHONPATH", "")
    variables = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # This checkout's plugin, also where another is installed.
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT), *filter(None, [given])]),
        **(environment or {}),
    }
    if cache_root is not None:
        variables["VLLM_CACHE_ROOT"] = str(cache_root)
    log = folder / "engine.log"
    with log.open("wb") as output:
        subprocess.run(
            [
                *interpreter,
                str(HERE / "drive_engine.py"),
                str(folder / "plan.json"),
                str(folder / "result.json"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            check=False,
            timeout=900,
        )
    server.stop(1).wait()
    assert (folder / "result.json").exists(), log.read_text()[-3000:]
    result = json.loads((folder / "result.json").read_text())
    return EngineRun(
        requests=requests,
        tokens=result["tokens"],
        batches=recorder.batches,
        gaps=recorder.gaps,
        bank=bank,
    )
