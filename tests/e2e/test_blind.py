"""A monitor that stopped seeing says so."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.serving import VLLMServer
from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import HERE, ORGANISM
from tests.e2e.test_faults import ARGUMENTS, send, send_until

pytestmark = pytest.mark.vllm


def is_healthy(daemon: Daemon) -> bool:
    """Ask gRPC's health service whether the daemon is watching."""
    with grpc.insecure_channel(daemon.listen) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="innerwatch.watching"), timeout=10
        )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_removed_tap_is_reported_within_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Taps taken out of a serving model: metric, health and state say so within 10 s,
    and no request served without them counts as scanned.
    """
    untap = tmp_path / "untap"
    monkeypatch.setenv("UNTAP_FILE", str(untap))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    make_bundle(tmp_path / "bundle", ORGANISM)
    daemon = Daemon(tmp_path)
    daemon.start()
    server = VLLMServer(
        str(ORGANISM),
        capture={"hook_points": list(HOOK_POINTS), "address": daemon.listen},
        log=tmp_path / "vllm.log",
        arguments=[*ARGUMENTS, "--worker-cls=untapping_worker.UntappingWorker"],
    )
    try:
        with server:
            server.wait_until_ready()
            daemon.wait_for(lambda s: s.state == "watching", 30)
            send(server, "tapped")
            before = daemon.wait_for(lambda s: s.n_requests["scanned"] >= 48, 30)
            assert is_healthy(daemon)

            is_enough = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                untap.touch()
                untapped = pool.submit(send_until, server, "untapped", is_enough)
                try:
                    blind = daemon.wait_for(lambda s: s.state == "blind", 10)
                finally:
                    is_enough.set()
                n_untapped = sum(map(len, untapped.result()))

            assert not is_healthy(daemon)
            assert blind.n_tokens_lost["tap_silent"] > 0
            assert 'innerwatch_state{state="blind"} 1.0' in daemon.metrics()
            after = daemon.wait_for_ends(sum(before.n_requests.values()) + n_untapped)
            assert before.n_requests["scanned"] == after.n_requests["scanned"]
    finally:
        daemon.signal(signal.SIGKILL)
