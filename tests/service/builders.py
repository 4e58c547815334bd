"""A bundle on disk, a daemon in a process of its own, and a client to talk to it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from monitor.records import StepBatch
from probes.bundle import Bundle, new_bundle, save_bundle
from probes.identity import ModelIdentity
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc
from tests.monitor.builders import D_MODEL, EARLY, ENGINE, LATE, calibration, detectors
from tests.service.messages import batch_to_proto, identity_to_proto

ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 30.0

Message = pb.StepBatch | pb.Gap | pb.Heartbeat | pb.Goodbye | pb.BankRefusal


def identity(**changes: str | int) -> ModelIdentity:
    """The identity of a model that does not exist."""
    fields: dict[str, str | int] = {
        "model": "tiny",
        "config_sha256": "c" * 64,
        "weights_sha256": "a" * 64,
        "tokenizer_sha256": "",
        "d_model": D_MODEL,
        "n_layers": 4,
        "dtype": "float32",
    }
    return ModelIdentity(**(fields | changes))  # type: ignore[arg-type]


def bundle() -> Bundle:
    """The monitor tests' detectors, as a bundle."""
    return new_bundle(
        name="test",
        version="1",
        identity=identity(),
        detectors=detectors(),
        calibration=calibration(),
    )


def hello(engine: str = ENGINE, **changes: object) -> pb.HelloRequest:
    """A Hello that `bundle` accepts, unless changed."""
    message = pb.HelloRequest(
        engine=engine,
        identity=identity_to_proto(identity()),
        hook_points=[EARLY, LATE],
        k_max=8,
        mode=pb.CAPTURE_MODE_PUSHDOWN,
        vllm_version="0",
        model_runner="V1",
    )
    message.MergeFrom(pb.HelloRequest(**changes))  # type: ignore[arg-type]
    return message


def eventually(is_true: Callable[[], bool], what: str) -> None:
    """Wait until *is_true*; fail with *what* if it never is."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)


@dataclass
class Place:
    """A folder with a bundle and a configuration."""

    folder: Path
    port: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        if not (self.folder / "bundle").exists():
            save_bundle(self.folder / "bundle", bundle())
        self.configure()

    @property
    def config(self) -> Path:
        return self.folder / "monitor.toml"

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    def configure(self, extra: str = "", **replaced: str) -> None:
        """Write the configuration: *extra* at the end, *replaced* sections."""
        sections = {
            "daemon": f'listen = "{self.address}"',
            "metrics": "port = 0",
            "detectors": 'bundle = "bundle"',
            "audit": 'directory = "audit"\nkeep = "token_ids"',
            "ingest": "blind_after_seconds = 1.5",
        } | replaced
        text = "\n".join(f"[{name}]\n{body}" for name, body in sections.items())
        self.config.write_text(f"{text}\n{extra}\n")


@contextmanager
def place() -> Iterator[Place]:
    """A place with a short name: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="iw-") as folder:
        yield Place(Path(folder))


def innerwatch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )


def serve_command(config: Path) -> list[str]:
    """Return the command line of a daemon."""
    return [sys.executable, "-m", "service.cli", "serve", "--config", str(config)]


@dataclass
class RunningDaemon:
    """``innerwatch serve`` in a process of its own."""

    place: Place
    log: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            serve_command(self.place.config),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        eventually(
            lambda: (
                any("ready:" in line for line in self.log)
                or self.process.poll() is not None
            ),
            "the daemon is ready",
        )
        assert self.process.poll() is None, self.log
        ready = next(line for line in self.log if "ready:" in line)
        self.url = ready.rsplit(" ", 1)[1].strip()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the daemon and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(_PATIENCE_SECONDS)

    def get(self, path: str = "metrics") -> str:
        """Fetch a page."""
        url = self.url.removesuffix("metrics") + path
        with urllib.request.urlopen(url, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, sample: str) -> float:
        """
        Return the sum over the samples with these labels, as Prometheus has it, e.g.
        of ``innerwatch_flags_total{detector="max"}`` over all bundles.
        """
        name, *labels = sample.rstrip("}").replace("{", ",").split(",")
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in self.get().splitlines()
            if line.startswith((name + " ", name + "{"))
            and all(label in line for label in labels)
        ]
        if not found:
            raise KeyError(sample)
        return sum(found)

    def state(self) -> str:
        """Return the daemon's state in one word."""
        return self.get("healthz").split(":")[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)


class Client:
    """An engine, as far as the daemon can tell."""

    def __init__(self, address: str, engine: str = ENGINE, rank: int = 0) -> None:
        self.engine, self.rank = engine, rank
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.capture = rpc.CaptureStub(self.channel)
        self.audit = rpc.AuditStub(self.channel)
        self.control = rpc.ControlStub(self.channel)
        self._requests: SimpleQueue[pb.StreamRequest | None] = SimpleQueue()
        self._answers: Iterator[pb.StreamResponse] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self.channel.close()

    def hello(self, **changes: object) -> pb.HelloResponse:
        """Say Hello and open the stream."""
        said = hello(self.engine, rank=self.rank, **changes)
        answer: pb.HelloResponse = self.capture.Hello(said)
        self.open()
        return answer

    def open(self) -> None:
        """Open the stream."""
        self._answers = self.capture.Stream(iter(self._requests.get, None))

    def send(self, batch: StepBatch | Message) -> None:
        """Send without waiting for the answer."""
        request = pb.StreamRequest(engine=self.engine, rank=self.rank)
        if isinstance(batch, StepBatch):
            batch = batch_to_proto(batch, captured_at=time.time())
        if isinstance(batch, pb.StepBatch):
            request.batch.CopyFrom(batch)
        elif isinstance(batch, pb.Gap):
            request.gap.CopyFrom(batch)
        elif isinstance(batch, pb.Heartbeat):
            request.heartbeat.CopyFrom(batch)
        elif isinstance(batch, pb.BankRefusal):
            request.bank_refusal.CopyFrom(batch)
        else:
            request.goodbye.CopyFrom(batch)
        self._requests.put(request)

    def answer(self) -> pb.StreamResponse:
        """Return the next answer."""
        assert self._answers is not None
        return next(self._answers)

    def ask(self, batch: StepBatch | Message) -> pb.StreamResponse:
        """Send and return the answer."""
        self.send(batch)
        return self.answer()

    def close_stream(self) -> None:
        """End the stream, having nothing more to say."""
        self._requests.put(None)

    def flags(self) -> list[pb.FlagRecord]:
        """Return the flags in the record."""
        return list(self.audit.ListFlags(pb.ListFlagsRequest()).flags)

    def health(self, service: str) -> int:
        """Return the health of *service*."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
        return status


def json_of(result: "subprocess.CompletedProcess[str]") -> object:
    """The JSON that a command printed."""
    answer: object = json.loads(result.stdout)
    return answer


def assert_refused(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """One line on stderr with every word, and the operator's status."""
    assert 2 == result.returncode, result
    lines = [line for line in result.stderr.splitlines() if "innerwatch: " in line]
    assert 1 == len(lines), result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]
