"""Kill the daemon again and again in traffic: is anything called scanned that was not?

usage: python -m tests.bench.killed [--kills 200] [--seconds 1.5] [--clients 6]

A real vLLM server with the plugin, clients that keep it busy, and a daemon that gets
SIGKILL so often, each time some time after it saw the engine again. When the last one
has taken what the engine kept for it meanwhile, every request in the record is held
against what the server says of it: one that is called scanned has to have all its
tokens judged, prompt and answer but for the last token drawn. Ends with status 1 if one
has not, or if a request that was answered is nowhere, or is there twice.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np

from service.request_ids import client_id
from service.serving import VLLMServer
from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import ORGANISM

_PATIENCE_SECONDS = 120.0
_BACKLOG_SECONDS = 600.0
_ARGUMENTS = [
    "--dtype=float32",
    "--max-model-len=512",
    "--max-num-seqs=8",
    "--enforce-eager",
    "--served-model-name=organism",
]


def main() -> int:
    """Kill, wait for the last requests, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.5, help="from connected on")
    parser.add_argument("--clients", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="innerwatch-") as name:
        folder = Path(name)
        make_bundle(folder / "bundle", ORGANISM)
        daemon = Daemon(folder)
        daemon.start()
        server = VLLMServer(
            str(ORGANISM),
            capture={"hook_points": list(HOOK_POINTS), "address": daemon.listen},
            log=folder / "vllm.log",
            arguments=_ARGUMENTS,
        )
        # One core for the engine, so that a daemon does not take seconds to start.
        os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        with server:
            server.wait_until_ready()
            try:
                n_tokens = kill_in_traffic(daemon, server, args)
                wait_for_record(daemon, n_tokens)
                status = daemon.wait_for(lambda s: s.n_live_requests == 0, 60)
            except BaseException:
                print((folder / "daemon.log").read_text()[-2000:])
                raise
        daemon.signal(signal.SIGTERM)
        return compare(daemon, n_tokens, args.kills, status.n_tokens_lost)


def kill_in_traffic(
    daemon: Daemon, server: VLLMServer, args: argparse.Namespace
) -> dict[str, int]:
    """Return how many tokens passed through the layers, by the client's request id."""
    n_tokens: dict[str, int] = {}
    is_over = threading.Event()
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(args.clients) as pool:
        clients = [
            pool.submit(keep_busy, server, f"client{i}", i, n_tokens, is_over)
            for i in range(args.clients)
        ]
        try:
            for kill in range(args.kills):
                wait_until_seeing(daemon)
                time.sleep(args.seconds * rng.uniform(0.2, 1.8))
                daemon.signal(signal.SIGKILL)
                daemon.start()
                if kill % 20 == 19:
                    print(f"{kill + 1} kills, {len(n_tokens)} requests", flush=True)
            wait_until_seeing(daemon)
        finally:
            is_over.set()
        for client in clients:
            client.result()
    return n_tokens


def wait_until_seeing(daemon: Daemon) -> None:
    """Wait until a batch came; a daemon that starts on a busy machine takes a while."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(grpc.RpcError):
            if daemon.status().last_batch_at > 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"the daemon saw nothing for {_PATIENCE_SECONDS:g} s")


def wait_for_record(daemon: Daemon, n_tokens: Mapping[str, int]) -> None:
    """
    Wait until the record has every request, or no more come.

    Most of the time there was no daemon: it finds more than it was there for.
    """
    n, deadline = 0, time.monotonic() + _BACKLOG_SECONDS
    while n < len(n_tokens) and time.monotonic() < deadline:
        time.sleep(5)
        before, n = n, len(daemon.audit("requests"))
        if n == before and daemon.status().n_live_requests == 0:
            return


def keep_busy(
    server: VLLMServer,
    name: str,
    seed: int,
    n_tokens: dict[str, int],
    is_over: threading.Event,
) -> None:
    """Send one request after the other, and note how long each was."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(5, 500, 64).tolist()
    n = 0
    while not is_over.is_set():
        request_id = f"{name}-{n}x"
        n += 1
        own = rng.integers(5, 500, int(rng.integers(1, 150))).tolist()
        body = {
            "model": "organism",
            "prompt": (shared if n % 2 else []) + own,
            "max_tokens": int(rng.integers(1, 60)),
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{server.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-Request-Id": request_id},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            usage = json.loads(answer.read())["usage"]
        # The last token drawn is never read by the model.
        passed = usage["prompt_tokens"] + usage["completion_tokens"] - 1
        n_tokens[request_id] = passed


def compare(
    daemon: Daemon, n_tokens: dict[str, int], n_kills: int, lost: Mapping[str, int]
) -> int:
    """Print the counts and return the exit status."""
    rows = daemon.audit("requests")
    verdicts: Counter[str] = Counter(str(row["verdict"]) for row in rows)
    seen = Counter(client_id(str(row["request_id"])) for row in rows)
    mislabelled = []
    for row in rows:
        judged = int(str(row["n_tokens_scored"])) + int(str(row["n_tokens_shadowed"]))
        name = client_id(str(row["request_id"]))
        if row["verdict"] == "scanned" and judged != n_tokens.get(name, judged):
            mislabelled.append((name, judged, n_tokens[name]))
    missing = set(n_tokens) - seen.keys()
    doubled = [name for name, n in seen.items() if n > 1]
    print(f"{n_kills} kills, {len(n_tokens)} requests answered, {dict(verdicts)}")
    print(f"{len(mislabelled)} called scanned and not: {mislabelled[:5]}")
    print(f"{len(missing)} not in the record: {sorted(missing)[:5]}")
    print(f"{len(doubled)} more than once in the record: {doubled[:5]}")
    print(f"tokens lost since the last start: {dict(lost)}")
    return int(bool(mislabelled or missing or doubled))


if __name__ == "__main__":
    sys.exit(main())
