"""Canaries through a server's API and back to a real daemon."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from probes.bundle import Bundle, new_bundle, save_bundle
from probes.canaries import Canary
from tests.monitor.builders import (
    D_MODEL,
    EARLY,
    LATE,
    Rows,
    bank,
    calibration,
    detectors,
)
from tests.service.builders import (
    Place,
    RunningDaemon,
    assert_refused,
    eventually,
    identity,
    innerwatch,
    json_of,
    place,
)
from tests.service.swapping import Engine, record

TOKENS = (7, 8, 9)
PATIENT = "blind_after_seconds = 60"
"""The engine here says nothing between two steps."""


def activations(token_id: int) -> list[float]:
    """What the model that does not exist makes of a token."""
    values: list[float] = (
        np.random.default_rng(token_id).standard_normal(D_MODEL).tolist()
    )
    return values


def bundle_with_canary() -> Bundle:
    """`tests.service.builders.bundle`, and what its bank makes of three tokens."""
    values = np.array([activations(t) for t in TOKENS], dtype=np.float32)
    columns, norms = bank().project({EARLY: values, LATE: values})
    return new_bundle(
        name="test",
        version="1",
        identity=identity(),
        detectors=detectors(),
        calibration=calibration(1e9),
        canaries=[Canary(token_ids=TOKENS, columns=columns, squared_norms=norms)],
    )


class ModelServer:
    """
    vLLM's API and engine, as far as a canary can tell.

    Attributes:
        factor: Activations are so many times too large.

        is_silent: Nothing is sent to the daemon.

        seen: The bodies and headers that came.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.factor = 1.0
        self.is_silent = False
        self.seen: list[tuple[dict[str, Any], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                outer.seen.append((body, self.headers))
                if not outer.is_silent:
                    outer.serve(self.headers["X-Request-Id"], body["prompt"])
                self.answer({"choices": [{"text": ""}]})

            def answer(self, body: object) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serve(self, name: str, prompt: list[int]) -> None:
        """Run one request through the engine."""
        values = [[x * self.factor for x in activations(t)] for t in prompt]
        rows = Rows(f"cmpl-{name}-0-abcdef01", 0, values, n_prompt_tokens=len(prompt))
        self.engine.step(rows, token_ids=prompt)
        self.engine.step(finished=(rows.request_id,))


@contextmanager
def watched(where: Place) -> Iterator[tuple[RunningDaemon, ModelServer]]:
    """A daemon with a bundle that has a canary, an engine and its server."""
    with RunningDaemon(where) as daemon, Engine(where.address) as engine:
        engine.hello()
        engine.beat()
        server = ModelServer(engine)
        try:
            eventually(lambda: daemon.state() == "watching", "it watches")
            yield daemon, server
        finally:
            server.http.shutdown()
            server.http.server_close()


@pytest.fixture
def where() -> Iterator[Place]:
    with place() as empty:
        shutil.rmtree(empty.folder / "bundle")
        save_bundle(empty.folder / "bundle", bundle_with_canary())
        empty.configure(ingest=PATIENT)
        yield empty


def run_canary(where: Place, server: ModelServer) -> tuple[int, str]:
    done = innerwatch(
        "canary", "--address", where.address, "--server", server.url, "--json"
    )
    assert done.returncode in (0, 1), done.stderr
    found = json_of(done)
    assert isinstance(found, dict)
    return done.returncode, found["verdict"]


def test_canaries_pass_and_fail_by_name(where: Place) -> None:
    """
    What comes out as before passes; what does not makes the state blind, no request
    scanned, and a gap since it last did, until it does again.
    """
    with watched(where) as (daemon, server):
        assert (0, "passed") == run_canary(where, server)
        (body, headers), *_ = server.seen
        assert list(TOKENS) == body["prompt"]
        assert body["cache_salt"] == headers["X-Request-Id"]
        assert 1 == daemon.metric('innerwatch_canaries_total{result="passed"}')
        assert daemon.metric("innerwatch_canary_passed_timestamp_seconds") > 0

        server.factor = 1.5
        assert (1, "columns_differ") == run_canary(where, server)
        eventually(lambda: daemon.state() == "blind", "it says that it is blind")
        assert "canaries: columns are" in daemon.get("healthz")
        server.engine.step(Rows("r1", 0, [activations(1)]), token_ids=[1])
        server.engine.step(finished=("r1",))
        verdicts = {r["request_id"]: r["verdict"] for r in record(where, "requests")}
        assert "partial" == verdicts["r1"]
        (gap,) = [g for g in record(where, "gaps") if g["reason"] == "canary_failed"]
        assert gap["began_at"] < gap["ended_at"]

        server.factor = 1.0
        assert (0, "passed") == run_canary(where, server)
        eventually(lambda: daemon.state() == "watching", "it watches again")
        server.engine.step(Rows("r2", 0, [activations(1)]), token_ids=[1])
        server.engine.step(finished=("r2",))
        verdicts = {r["request_id"]: r["verdict"] for r in record(where, "requests")}
        assert "scanned" == verdicts["r2"]


def test_canaries_that_do_not_come_are_a_blindness(where: Place) -> None:
    """A server that answers while nothing is seen is the very thing to find."""
    with watched(where) as (daemon, server):
        server.is_silent = True
        assert (1, "not_seen") == run_canary(where, server)
        eventually(lambda: daemon.state() == "blind", "it says that it is blind")


def test_a_server_that_does_not_answer_is_said_to(where: Place) -> None:
    """Nothing is known then: degraded, and no gap."""
    with watched(where) as (daemon, server):
        server.http.shutdown()
        server.http.server_close()
        assert (1, "not_answered") == run_canary(where, server)
        eventually(lambda: daemon.state() == "degraded", "it says so")
        assert [] == [g for g in record(where, "gaps") if g["reason"] != "not_received"]
        server.http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        threading.Thread(target=server.http.serve_forever, daemon=True).start()


def test_the_daemon_runs_them_on_a_schedule(where: Place) -> None:
    """With a server in its configuration it needs nobody to ask."""
    with RunningDaemon(where) as daemon, Engine(where.address) as engine:
        engine.hello()
        server = ModelServer(engine)
    where.configure(
        canary=f'server = "{server.url}"\ninterval_seconds = 0.2',
        audit='directory = "b"',
        ingest=PATIENT,
    )
    with RunningDaemon(where) as daemon, Engine(where.address, "engine-2") as engine:
        server.engine = engine
        engine.hello()
        engine.beat()
        passed = 'innerwatch_canaries_total{result="passed"}'
        eventually(lambda: daemon.metric(passed) >= 2, "two runs pass")
    server.http.shutdown()
    server.http.server_close()


def test_a_bundle_without_canaries_is_refused() -> None:
    """There is nothing to prove it by, and the command says so."""
    with place() as without, RunningDaemon(without):
        asked = ["canary", "--address", without.address, "--server"]
        done = innerwatch(*asked, "http://127.0.0.1:1")
        assert_refused(done, "no canaries")
        done = innerwatch(*asked, "nonsense")
        assert_refused(done, "server: expected http://host:port")
