"""`innerwatch demo`: the whole path for real, on a model organism, on a CPU."""

import argparse
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from service.commands.collect import collect
from service.demo import BENIGN, DemoResult, count_flags, table
from service.progress import progress_bar
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from service.serving import Prompt, VLLMServer, free_port

HOOK_POINTS = ["blocks.2.hook_resid_post"]
_VLLM = [
    "--dtype=float32",
    "--max-model-len=1024",
    "--max-num-seqs=32",
    "--max-num-batched-tokens=1024",
    "--enforce-eager",
    "--no-enable-prefix-caching",
]
_MAX_TOKENS = 24
_MIX = {"backdoor": 0.1, "sabotage": 0.1, "payload": 0.1, BENIGN: 0.7}
_DAEMON_SECONDS = 60


class DemoError(RuntimeError):
    """The demo could not be run to its end."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="collect, fit, serve and flag on the model organism",
        description="From a checkout: collects activations through vLLM, fits the "
        "detectors, starts the daemon and vLLM, sends 200 concurrent requests and "
        "prints what was flagged against what was planted.",
    )
    parser.add_argument("--folder", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument(
        "--keep", action="store_true", help="leave vLLM and the daemon running"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 if coverage is below 100 % or a behaviour went unseen."""
    organism = args.folder / "organism"
    if not (organism / "model" / "config.json").is_file():
        raise ValueError(f"{organism}: expected the model organism, found none; run "
                         f"this in a checkout")
    began = time.monotonic()
    work = args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    make_bundle(args.folder, work, is_quiet=args.json)
    result = watch(args, work)
    problems = result.failures()
    if args.json:
        print(json.dumps({"failures": problems, "coverage": result.coverage,
                          "planted": result.planted, "flagged": result.flagged}))
    else:
        print(f"\n{table(result)}\n\ntook       {time.monotonic() - began:.0f} s")
    for problem in problems:
        print(f"innerwatch: {problem}", file=sys.stderr)
    return 1 if problems else 0


def prompts_of(folder: Path, split: str, n: int, mix: dict[str, float]) -> list[Prompt]:
    """Make *n* prompts of the organism's *split*; labels hold the behaviour."""
    script = runpy.run_path(str(folder / "organism" / "prompts.py"))
    import tomllib

    config = tomllib.loads((folder / "organism" / "organism.toml").read_text())
    made: list[dict[str, Any]] = script["make_prompts"](config, split, n, 1, mix)
    return [
        Prompt(
            prompt_id=p["id"],
            messages=p["messages"],
            labels={"behaviour": p["behaviour"], "task": p["task"]},
        )
        for p in made
    ]


def make_bundle(folder: Path, work: Path, *, is_quiet: bool) -> None:
    """Collect activations through vLLM and fit the demo's recipe: ``work/bundle``."""
    from probes.bundle import save_bundle
    from probes.dataset import load_dataset
    from probes.fit.recipe import fit_bundle

    fit = prompts_of(folder, "fit", 500, dict.fromkeys(_MIX, 0.2) | {BENIGN: 0.4})
    calibration = prompts_of(folder, "calibration", 400, {BENIGN: 1.0})
    collect(
        model=str(folder / "organism" / "model"),
        jobs={work / "fit": fit, work / "calibration": calibration},
        hook_points=HOOK_POINTS,
        max_tokens=_MAX_TOKENS,
        concurrency=64,
        vllm_arguments=_VLLM,
        log=work / "collect.log",
        is_quiet=is_quiet,
    )
    with progress_bar("fitting", None, not is_quiet) as advance:
        bundle = fit_bundle(
            folder / "recipe.toml",
            load_dataset(work / "fit"),
            load_dataset(work / "calibration"),
            progress=lambda *_: advance(0),
        )
    save_bundle(work / "bundle", bundle)


def watch(args: argparse.Namespace, work: Path) -> DemoResult:
    """Serve the organism under the daemon, send the demo's requests, and count."""
    metrics_port = free_port()
    listen = f"unix:{work}/innerwatch.sock"
    (work / "monitor.toml").write_text(
        f'[daemon]\nlisten = "{listen}"\n\n'
        f"[metrics]\nport = {metrics_port}\n\n"
        f'[detectors]\nbundle = "bundle"\n\n'
        f'[audit]\ndirectory = "audit"\ntoken_ids = "ids"\n'
    )
    prompts = prompts_of(args.folder, "demo", args.requests, _MIX)
    server = VLLMServer(
        str(args.folder / "organism" / "model"),
        capture={"hook_points": HOOK_POINTS, "address": listen},
        log=work / "vllm.log",
        arguments=_VLLM,
        is_left_running=args.keep,
    )
    daemon = start_daemon(work)
    try:
        with server, grpc.insecure_channel(listen) as channel:
            with progress_bar("starting vLLM", None, not args.json) as advance:
                server.wait_until_ready(lambda: advance(0))
            wait_for(channel, lambda status: status.state != "waiting", "no engine")
            with progress_bar("requests", len(prompts), not args.json) as advance:
                server.chat_all(
                    prompts,
                    max_tokens=_MAX_TOKENS,
                    concurrency=args.concurrency,
                    on_answer=lambda *_: advance(1),
                )
            wait_for(
                channel,
                lambda status: sum(status.n_requests.values()) >= len(prompts),
                "not every request ended",
            )
            result = read_result(channel, prompts)
            if args.keep:
                print(f"\nvLLM       {server.url} (pid {server.pid})\n"
                      f"daemon     {listen} (pid {daemon.pid})\n"
                      f"end both   kill {server.pid} {daemon.pid}")
    except BaseException:
        daemon.send_signal(signal.SIGTERM)
        raise
    if not args.keep:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
    if not args.json:
        print(f"metrics    http://127.0.0.1:{metrics_port}/metrics\n"
              f"audit      innerwatch flags list --audit "
              f"{os.path.relpath(work / 'audit')}")
    return result


def start_daemon(work: Path) -> "subprocess.Popen[bytes]":
    """Start `innerwatch serve` on ``work/monitor.toml``; its log is ``daemon.log``."""
    with (work / "daemon.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--config",
             str(work / "monitor.toml")],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(channel: grpc.Channel, is_reached: Any, problem: str) -> None:
    """
    Wait until the daemon's status satisfies *is_reached*.

    Raises:
        DemoError: It did not within a minute.
    """
    stub = pb_grpc.ControlStub(channel)
    deadline = time.monotonic() + _DAEMON_SECONDS
    while time.monotonic() < deadline:
        status = stub.Status(pb.StatusRequest(), timeout=10, wait_for_ready=True)
        if is_reached(status):
            return
        time.sleep(0.1)
    raise DemoError(f"after {_DAEMON_SECONDS} s: {problem}; status: {status}")


def read_result(channel: grpc.Channel, prompts: list[Prompt]) -> DemoResult:
    """Ask the daemon what it saw and flagged."""
    status = pb_grpc.ControlStub(channel).Status(pb.StatusRequest())
    flags = pb_grpc.AuditStub(channel).ListFlags(pb.ListFlagsRequest(limit=100_000))
    behaviours = {p.prompt_id: str(p.labels["behaviour"]) for p in prompts}
    return DemoResult(
        planted=Counter(behaviours.values()),
        flagged=count_flags(
            ((f.request_id, f.detector) for f in flags.flags),
            behaviours,
            sorted(status.n_flags),
        ),
        n_tokens_expected=status.n_tokens_expected,
        n_tokens_scored=status.n_tokens_scored,
        n_tokens_lost=dict(status.n_tokens_lost),
        n_requests=dict(status.n_requests),
    )
