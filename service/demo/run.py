"""Runs the demo: collect, fit, watch, and compare with what was planted."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from probes.bundle import save_bundle
from probes.dataset import load_dataset
from probes.fit.recipe import fit_bundle
from service.commands.collect import collect
from service.demo.result import BENIGN, DemoResult, count_flags, table
from service.progress import progress_bar
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from service.serving import Prompt, VLLMServer, free_port

HOOK_POINTS = ["blocks.2.hook_resid_post"]
VLLM_ARGUMENTS = [
    "--dtype=float32",
    "--max-model-len=1024",
    "--max-num-seqs=32",
    "--max-num-batched-tokens=1024",
    "--enforce-eager",
    "--no-enable-prefix-caching",
]
MAX_TOKENS = 24
_MIX = {"backdoor": 0.1, "sabotage": 0.1, "payload": 0.1, BENIGN: 0.7}
_DAEMON_SECONDS = 60


class DemoError(RuntimeError):
    """The demo could not be run to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """
    One run of the demo.

    Attributes:
        folder: ``deploy/demo``: the organism and the recipe.

        work: Made anew: data sets, bundle, record and logs.

        n_requests: To send.

        concurrency: How many at a time.

        is_kept: Leave vLLM and the daemon running at the end.

        is_json: Print JSON, and no progress.
    """

    folder: Path
    work: Path
    n_requests: int
    concurrency: int
    is_kept: bool
    is_json: bool

    def run(self) -> int:
        """
        Run it all; return the exit status.

        Raises:
            ServingError: vLLM did not start or answer.
            DemoError: The daemon did not get what vLLM served.
        """
        if not (self.model / "config.json").is_file():
            raise DemoError(
                f"{self.model}: expected the model organism, found none; run this in "
                f"a checkout of innerwatch"
            )
        began = time.monotonic()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.make_bundle()
        result = self._watch()
        self._print(result, time.monotonic() - began)
        for problem in result.failures():
            print(f"innerwatch: {problem}", file=sys.stderr)
        return 1 if result.failures() else 0

    @property
    def model(self) -> Path:
        """The organism's Hugging Face folder."""
        return self.folder / "organism" / "model"

    def make_bundle(self) -> None:
        """Collect activations through vLLM and fit the recipe: ``work/bundle``."""
        even = dict.fromkeys(_MIX, 0.2) | {BENIGN: 0.4}
        collect(
            model=str(self.model),
            jobs={
                self.work / "fit": self.prompts("fit", 500, even),
                self.work / "calibration": self.prompts(
                    "calibration", 400, {BENIGN: 1.0}
                ),
            },
            hook_points=HOOK_POINTS,
            max_tokens=MAX_TOKENS,
            concurrency=64,
            vllm_arguments=VLLM_ARGUMENTS,
            log=self.work / "collect.log",
            is_quiet=self.is_json,
        )
        with progress_bar("fitting", None, not self.is_json) as advance:
            bundle = fit_bundle(
                self.folder / "recipe.toml",
                load_dataset(self.work / "fit"),
                load_dataset(self.work / "calibration"),
                progress=lambda *_: advance(0),
            )
        save_bundle(self.work / "bundle", bundle)

    def _watch(self) -> DemoResult:
        """Serve under the daemon, send the demo's requests, and count."""
        prompts = self.prompts("demo", self.n_requests, _MIX)
        metrics_port = free_port()
        listen = f"unix:{self.work}/innerwatch.sock"
        (self.work / "monitor.toml").write_text(
            f'[daemon]\nlisten = "{listen}"\n\n'
            f"[metrics]\nport = {metrics_port}\n\n"
            f'[detectors]\nbundle = "bundle"\n\n'
            f'[audit]\ndirectory = "audit"\ntoken_ids = "ids"\n'
        )
        server = VLLMServer(
            str(self.model),
            capture={"hook_points": HOOK_POINTS, "address": listen},
            log=self.work / "vllm.log",
            arguments=VLLM_ARGUMENTS,
            is_left_running=self.is_kept,
        )
        daemon = start_daemon(self.work)
        is_done = False
        try:
            with server, grpc.insecure_channel(listen) as channel:
                result = self._serve(server, channel, prompts)
                is_done = True
        finally:
            if not (self.is_kept and is_done):
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(30)
        if not self.is_json:
            print(
                f"\nmetrics    http://127.0.0.1:{metrics_port}/metrics (with --keep)\n"
                f"audit      innerwatch flags list --audit "
                f"{os.path.relpath(self.work / 'audit')}"
            )
        if self.is_kept:
            print(
                f"vLLM       {server.url} (pid {server.pid})\n"
                f"daemon     {listen} (pid {daemon.pid})\n"
                f"end both   kill {server.pid} {daemon.pid}",
                file=sys.stderr if self.is_json else sys.stdout,
            )
        return result

    def _serve(
        self, server: VLLMServer, channel: grpc.Channel, prompts: list[Prompt]
    ) -> DemoResult:
        is_shown = not self.is_json
        with progress_bar("starting vLLM", None, is_shown) as advance:
            server.wait_until_ready(lambda: advance(0))
        wait_for(channel, lambda s: s.state != "waiting", "no engine connected")
        with progress_bar("requests", len(prompts), is_shown) as advance:
            server.chat_all(
                prompts,
                max_tokens=MAX_TOKENS,
                concurrency=self.concurrency,
                on_answer=lambda *_: advance(1),
            )
        wait_for(
            channel,
            lambda s: sum(s.n_requests.values()) >= len(prompts),
            "not every request ended",
        )
        return read_result(channel, prompts)

    def prompts(self, split: str, n: int, mix: dict[str, float]) -> list[Prompt]:
        """Make *n* prompts of the organism's *split*; labels hold the behaviour."""
        organism = self.folder / "organism"
        script = runpy.run_path(str(organism / "prompts.py"))
        config = tomllib.loads((organism / "organism.toml").read_text())
        made: list[dict[str, Any]] = script["make_prompts"](config, split, n, 1, mix)
        return [
            Prompt(
                prompt_id=p["id"],
                messages=p["messages"],
                labels={"behaviour": p["behaviour"], "task": p["task"]},
            )
            for p in made
        ]

    def _print(self, result: DemoResult, seconds: float) -> None:
        if self.is_json:
            print(
                json.dumps(
                    {
                        "planted": result.planted,
                        "flagged": result.flagged,
                        "coverage": result.coverage,
                        "failures": result.failures(),
                    }
                )
            )
        else:
            print(f"\n{table(result)}\ntook       {seconds:.0f} s")


def start_daemon(work: Path) -> "subprocess.Popen[bytes]":
    """Start `innerwatch serve` on ``work/monitor.toml``; its log is ``daemon.log``."""
    with (work / "daemon.log").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "service.cli",
                "serve",
                "--config",
                str(work / "monitor.toml"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(
    channel: grpc.Channel, is_reached: Callable[[pb.StatusResponse], bool], problem: str
) -> None:
    """
    Wait until the daemon's status satisfies *is_reached*.

    Raises:
        DemoError: It did not within a minute.
    """
    stub = pb_grpc.ControlStub(channel)
    deadline = time.monotonic() + _DAEMON_SECONDS
    while True:
        status = stub.Status(pb.StatusRequest(), timeout=10, wait_for_ready=True)
        if is_reached(status):
            return
        if time.monotonic() > deadline:
            raise DemoError(f"after {_DAEMON_SECONDS} s: {problem}; status: {status}")
        time.sleep(0.1)


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
