"""The demo's daemon: its configuration, its process, and what it saw."""

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from service.address import parse_address
from service.commands.client import describe_error
from service.daemon.audit.reader import AuditReader
from service.demo.result import DemoResult, count_flags
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from service.serving import Prompt

SOCKET_NAME = "innerwatch.sock"
"""The daemon's socket, in the demo's folder."""

_PATIENCE_SECONDS = 60
_CALL_SECONDS = 10


class DemoError(RuntimeError):
    """The demo could not be run to its end. One line."""


def listen_address(work: Path) -> str:
    """
    Return the address of a daemon in the folder *work*.

    Raises:
        DemoError: The name of *work* is too long for a unix socket in it.
    """
    address = f"unix:{work / SOCKET_NAME}"
    try:
        parse_address(address)
    except ValueError as error:
        raise DemoError(f"--work: {error}") from error
    return address


def is_answered(work: Path) -> bool:
    """Say whether a daemon listens in the folder *work*."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(work / SOCKET_NAME)) == 0


def monitor_toml(listen: str, metrics_port: int, digest: str) -> str:
    """Return the configuration: ``bundle`` with *digest*, a record in ``audit``."""
    # A JSON string without escaped letters is a TOML string.
    return (
        f"[daemon]\nlisten = {json.dumps(listen, ensure_ascii=False)}\n\n"
        f"[metrics]\nport = {metrics_port}\n\n"
        f'[detectors]\nbundle = "bundle"\ndigest = "{digest}"\n\n'
        f'[audit]\ndirectory = "audit"\nkeep = "token_ids"\n'
    )


class Daemon:
    """
    `innerwatch serve` on ``monitor.toml`` in a folder; a context manager that ends it.

    Args:
        work: The folder. The daemon's output goes to ``daemon.log`` in it.

        listen: As in the configuration.

        is_left_running: Leave the process running at the end.
    """

    def __init__(self, work: Path, listen: str, *, is_left_running: bool) -> None:
        self.log = work / "daemon.log"
        self._audit = work / "audit"
        self._is_left_running = is_left_running
        self._channel = grpc.insecure_channel(listen)
        self._control = pb_grpc.ControlStub(self._channel)
        config = ["--config", str(work / "monitor.toml")]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve", *config],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_for(
        self, is_reached: Callable[[pb.StatusResponse], bool], problem: str
    ) -> pb.StatusResponse:
        """
        Wait until the daemon answers with a status that satisfies *is_reached*.

        Raises:
            DemoError: It did not within a minute, or the daemon ended.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        last = "no daemon answers"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise DemoError(
                    f"the daemon ended with status {self._process.returncode}: "
                    f"{self._last_line()} (log: {self.log})"
                )
            try:
                status: pb.StatusResponse = self._control.Status(
                    pb.StatusRequest(), timeout=_CALL_SECONDS
                )
            except grpc.RpcError as error:
                last = describe_error(error)
            else:
                if is_reached(status):
                    return status
                last = f"state {status.state}, requests {dict(status.n_requests)}"
            time.sleep(0.1)
        raise DemoError(f"after {_PATIENCE_SECONDS} s: {problem}: {last}")

    def result(self, prompts: Sequence[Prompt]) -> DemoResult:
        """
        Return what the daemon saw and flagged; call it when every request has ended.

        Raises:
            DemoError: The daemon does not answer.
        """
        status = self.wait_for(lambda _: True, "no status")
        behaviours = {p.prompt_id: str(p.labels["behaviour"]) for p in prompts}
        # From the record itself: the daemon lists the newest ones only.
        flags = AuditReader(self._audit).flags(limit=sys.maxsize)
        return DemoResult(
            planted=Counter(behaviours.values()),
            flagged=count_flags(
                ((flag.request_id, flag.detector) for flag in flags),
                behaviours,
                sorted(status.n_flags),
            ),
            n_tokens_expected=status.n_tokens_expected,
            n_tokens_scored=status.n_tokens_scored,
            n_tokens_shadowed=status.n_tokens_shadowed,
            n_tokens_lost=dict(status.n_tokens_lost),
            n_requests=dict(status.n_requests),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        if self._is_left_running and error is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output")
