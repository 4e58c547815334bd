"""Canaries through a real server tell the model that the bundle is for from another."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.serving import VLLMServer
from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import HERE, ORGANISM
from tests.e2e.test_faults import ARGUMENTS, send
from tests.service.builders import innerwatch, json_of

pytestmark = pytest.mark.vllm


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    make_bundle(tmp_path / "bundle", ORGANISM, has_canary=True)
    daemon = Daemon(tmp_path)
    daemon.start()
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.signal(signal.SIGKILL)


def run_canary(daemon: Daemon, server: VLLMServer) -> str:
    """Run ``innerwatch canary`` and return its verdict."""
    done = innerwatch(
        "canary", "--address", daemon.listen, "--server", server.url, "--json"
    )
    assert done.returncode in (0, 1), done.stderr
    found = json_of(done)
    assert isinstance(found, dict)
    return str(found["verdict"])


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "altered"])
def test_weights_that_are_not_the_files_are_noticed(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_right: bool
) -> None:
    """
    A server whose weights are those of its files passes. One with others behind the
    same name and the same files is let in, and found out: blind, and nothing scanned.
    """
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    altered = "--worker-cls=altered_worker.AlteredWorker"
    server = VLLMServer(
        str(ORGANISM),
        capture={"hook_points": list(HOOK_POINTS), "address": daemon.listen},
        log=tmp_path / "vllm.log",
        arguments=ARGUMENTS if is_right else [*ARGUMENTS, altered],
    )
    with server:
        server.wait_until_ready()
        daemon.wait_for(lambda s: s.state == "watching", 30)
        for _ in range(2):
            verdict = "passed" if is_right else "columns_differ"
            assert verdict == run_canary(daemon, server)
        state = "watching" if is_right else "blind"
        daemon.wait_for(lambda s: s.state == state, 10)
        before = daemon.status().n_requests
        n_sent = len(send(server, "after"))
        after = daemon.wait_for_ends(sum(before.values()) + n_sent)
        assert (after.n_requests["scanned"] > before["scanned"]) == is_right
    gaps = [gap for gap in daemon.audit("gaps") if gap["reason"] == "canary_failed"]
    assert len(gaps) == (0 if is_right else 2)
