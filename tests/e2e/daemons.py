"""A real daemon in a process of its own, to be killed, stopped and asked."""

import os
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc

from service.daemon.audit.opening import FILE_NAME
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from service.serving import free_port
from tests.service.builders import serve_command


class Daemon:
    """`innerwatch serve` in a process of its own, which can be killed and started."""

    def __init__(
        self, folder: Path, bundle: str = "bundle", keep: str = "hash"
    ) -> None:
        self.folder = folder
        self.listen = f"unix:{folder}/innerwatch.sock"
        self.metrics_port = free_port()
        (folder / "monitor.toml").write_text(
            f'[daemon]\nlisten = "{self.listen}"\n'
            f"[metrics]\nport = {self.metrics_port}\n"
            f'[detectors]\nbundle = "{bundle}"\n'
            f'[audit]\ndirectory = "audit"\nkeep = "{keep}"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting."""
        with (self.folder / "daemon.log").open("ab") as log:
            # As under systemd. Linux shares processors between sessions first: beside
            # the engine's session, this daemon and all that started it would be one.
            self.process = subprocess.Popen(
                serve_command(self.folder / "monitor.toml"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; wait for its end if that is what the signal asks for."""
        assert self.process is not None
        os.kill(self.process.pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait()

    def status(self) -> pb.StatusResponse:
        """Ask it for its state."""
        with grpc.insecure_channel(self.listen) as channel:
            stub = pb_grpc.ControlStub(channel)
            answer: pb.StatusResponse = stub.Status(
                pb.StatusRequest(), timeout=20, wait_for_ready=True
            )
            return answer

    def wait_for(
        self, is_reached: Callable[[pb.StatusResponse], bool], seconds: float
    ) -> pb.StatusResponse:
        """Return the first status that satisfies *is_reached*, or fail."""
        deadline = time.monotonic() + seconds
        while not is_reached(status := self.status()):
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return status

    def wait_for_ends(self, n_requests: int, seconds: float = 30) -> pb.StatusResponse:
        """
        Return the first status in which so many have ended, and none runs.

        An answer of few steps may be there before the daemon has heard of its request.
        """
        return self.wait_for(
            lambda s: not s.n_live_requests and _n_ended(s) >= n_requests, seconds
        )

    def audit(self, table: str) -> list[dict[str, object]]:
        """Return the rows of the record's *table*."""
        path = self.folder / "audit" / FILE_NAME
        with sqlite3.connect(path) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]

    def metrics(self) -> str:
        """Return /metrics."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.metrics_port}/metrics"
        ) as r:
            text: str = r.read().decode()
            return text


def _n_ended(status: pb.StatusResponse) -> int:
    return sum(status.n_requests.values())
