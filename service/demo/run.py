"""Runs the demo: collect, fit, watch, and compare with what was planted."""

import json
import os
import runpy
import shutil
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.bundle import save_bundle
from probes.dataset import load_dataset
from service.commands.collect import collect
from service.commands.fit import fit_shown
from service.config import MetricsConfig, WebConfig
from service.demo.daemon import (
    Daemon,
    DemoError,
    is_answered,
    listen_address,
    monitor_toml,
)
from service.demo.result import BENIGN, DemoResult, table
from service.progress import progress_bar
from service.serving import Prompt, VLLMServer, free_port

HOOK_POINTS = ["blocks.1.hook_resid_post"]
VLLM_ARGUMENTS = [
    "--dtype=float32",
    "--max-model-len=1024",
    "--max-num-seqs=32",
    "--max-num-batched-tokens=1024",
    "--enforce-eager",
]
MAX_TOKENS = 24
_MIX = {"backdoor": 0.1, "sabotage": 0.1, "payload": 0.1, BENIGN: 0.7}
_MARKER = ".innerwatch-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """
    One run of the demo.

    Attributes:
        folder: ``deploy/demo``: the organism and the recipe.

        work: Made anew: data sets, bundle, record and logs. Absent, empty, or made
            by an earlier demo.

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
            DemoError: *work* cannot be used, or the daemon did not get what vLLM
                served.
        """
        listen = listen_address(self.work)
        if not (self.model / "config.json").is_file():
            raise DemoError(
                f"{self.model}: expected the model organism, found none; run this in "
                f"a checkout of innerwatch"
            )
        began = time.monotonic()
        self.clear_work()
        result = self._watch(listen, self.make_bundle())
        self._print(result, time.monotonic() - began)
        for problem in result.failures():
            print(f"innerwatch: {problem}", file=sys.stderr)
        return 1 if result.failures() else 0

    def clear_work(self) -> None:
        """
        Make *work* an empty folder, marked as a demo's.

        Raises:
            DemoError: It holds what no demo made, or the daemon of a demo that was
                kept. Nothing was removed.
        """
        if self.work.exists() and not self.work.is_dir():
            raise DemoError(f"{self.work}: expected a folder, found a file")
        if self.work.is_dir() and any(self.work.iterdir()):
            if not (self.work / _MARKER).is_file():
                raise DemoError(
                    f"{self.work}: expected a folder that is empty or that a demo "
                    f"made, found other files; nothing was removed"
                )
            if is_answered(self.work):
                raise DemoError(
                    f"{self.work}: the daemon of an earlier demo still runs here; end "
                    f"it, or give another --work; nothing was removed"
                )
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / _MARKER).write_text("innerwatch demo removes this folder.\n")

    @property
    def model(self) -> Path:
        """The organism's Hugging Face folder."""
        return self.folder / "organism" / "model"

    def make_bundle(self) -> str:
        """
        Collect activations through vLLM and fit the recipe: ``work/bundle``.

        Returns:
            The bundle's digest.
        """
        even = dict.fromkeys(_MIX, 0.2) | {BENIGN: 0.4}
        collect(
            model=str(self.model),
            jobs={
                self.work / "fit": self.prompts("fit", 1000, even),
                self.work / "calibration": self.prompts(
                    "calibration", 600, {BENIGN: 1.0}
                ),
            },
            hook_points=HOOK_POINTS,
            max_tokens=MAX_TOKENS,
            concurrency=64,
            vllm_arguments=VLLM_ARGUMENTS,
            log=self.work / "collect.log",
            is_quiet=self.is_json,
        )
        bundle = fit_shown(
            self.folder / "recipe.toml",
            load_dataset(self.work / "fit"),
            load_dataset(self.work / "calibration"),
            is_shown=not self.is_json,
        )
        return save_bundle(self.work / "bundle", bundle)

    def _watch(self, listen: str, digest: str) -> DemoResult:
        """Serve under the daemon, send the demo's requests, and count."""
        prompts = self.prompts("demo", self.n_requests, _MIX)
        # Where deploy/prometheus/prometheus.yml looks, and the README says.
        metrics_port = free_port(MetricsConfig().port)
        web_port = free_port(WebConfig().port)
        (self.work / "monitor.toml").write_text(
            monitor_toml(
                listen,
                metrics_port,
                digest,
                web_port=web_port,
                tokenizer=str(self.model.resolve()),
            )
        )
        server = VLLMServer(
            str(self.model),
            capture={"hook_points": HOOK_POINTS, "address": listen},
            log=self.work / "vllm.log",
            arguments=VLLM_ARGUMENTS,
            is_left_running=self.is_kept,
        )
        with Daemon(self.work, listen, is_left_running=self.is_kept) as daemon:
            daemon.wait_for(lambda _: True, "the daemon did not start")
            with server:
                result = self._serve(server, daemon, prompts)
        if not self.is_json:
            print(
                f"\naudit page http://127.0.0.1:{web_port}/ (with --keep)"
                f"\nmetrics    http://127.0.0.1:{metrics_port}/metrics (with --keep)\n"
                f"audit      innerwatch flags list --audit "
                f"{os.path.relpath(self.work / 'audit')}"
            )
        if self.is_kept:
            print(
                f"vLLM       {server.url} (pid {server.pid})\n"
                f"daemon     {listen} (pid {daemon.pid})\n"
                f"drill      innerwatch drill --address {listen}\n"
                f"end both   kill {server.pid} {daemon.pid}",
                file=sys.stderr if self.is_json else sys.stdout,
            )
        return result

    def _serve(
        self, server: VLLMServer, daemon: Daemon, prompts: list[Prompt]
    ) -> DemoResult:
        is_shown = not self.is_json
        with progress_bar("starting vLLM", None, is_shown) as advance:
            server.wait_until_ready(lambda: advance(0))
        daemon.wait_for(lambda s: s.state != "waiting", "no engine connected")
        with progress_bar("requests", len(prompts), is_shown) as advance:
            server.chat_all(
                prompts,
                max_tokens=MAX_TOKENS,
                concurrency=self.concurrency,
                on_answer=lambda *_: advance(1),
            )
        daemon.wait_for(
            lambda s: sum(s.n_requests.values()) >= len(prompts),
            "not every request ended",
        )
        return daemon.result(prompts)

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
