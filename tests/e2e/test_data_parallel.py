"""Data parallel: every rank is an engine of its own, and all go to one daemon."""

import signal
from pathlib import Path

import pytest

from service.serving import VLLMServer
from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import ORGANISM
from tests.e2e.test_faults import ARGUMENTS, make_prompts

pytestmark = pytest.mark.vllm

N_REQUESTS = 16


def test_two_ranks_are_two_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Two ranks behind one API: requests of both are scanned under their client's id,
    no token is lost, and the record says which rank each engine is.
    """
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_bundle(tmp_path / "bundle", ORGANISM)
    daemon = Daemon(tmp_path)
    daemon.start()
    server = VLLMServer(
        str(ORGANISM),
        capture={"hook_points": list(HOOK_POINTS), "address": daemon.listen},
        log=tmp_path / "vllm.log",
        arguments=[*ARGUMENTS, "--data-parallel-size=2"],
    )
    try:
        with server:
            server.wait_until_ready()
            daemon.wait_for(lambda s: s.state == "watching", 60)
            server.chat_all(
                make_prompts("both", N_REQUESTS), max_tokens=8, concurrency=4
            )
            status = daemon.wait_for_ends(N_REQUESTS)
    finally:
        daemon.signal(signal.SIGKILL)

    assert not {r: n for r, n in status.n_tokens_lost.items() if n}
    assert ["scanned"] == [v for v, n in status.n_requests.items() if n]
    hellos = [str(e["detail"]) for e in daemon.audit("events") if e["kind"] == "hello"]
    assert [0, 1] == sorted("data-parallel rank 1" in detail for detail in hellos)
    requests = [r for r in daemon.audit("requests") if "both-" in str(r["request_id"])]
    assert len(requests) == N_REQUESTS
    assert 2 == len({row["engine"] for row in requests})
