"""A dead, stopped or absent daemon harms no request, and is on record afterwards."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.serving import Prompt, VLLMServer
from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import ORGANISM

pytestmark = pytest.mark.vllm

ARGUMENTS = [
    "--dtype=float32",
    "--max-model-len=512",
    "--max-num-seqs=8",
    "--enforce-eager",
    "--no-enable-prefix-caching",
]
WORDS = ("apple", "basket", "candle", "desk", "engine", "feather", "guitar")


def make_prompts(name: str, n: int) -> list[Prompt]:
    """Return *n* prompts whose ids begin with *name*; the texts do not depend on it."""
    return [
        Prompt(
            prompt_id=f"{name}-{i:03d}",
            messages=[
                {
                    "role": "user",
                    "content": "repeat the words : "
                    + " ".join(
                        WORDS[(i * 3 + k) % len(WORDS)] for k in range(3 + i % 40)
                    ),
                }
            ],
        )
        for i in range(n)
    ]


def by_index(answers: dict[str, str]) -> list[str]:
    """Return the texts in the order of the prompts."""
    return [answers[name] for name in sorted(answers)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Answers of a server without the plugin."""
    log = tmp_path_factory.mktemp("untapped") / "vllm.log"
    server = VLLMServer(str(ORGANISM), capture=None, log=log, arguments=ARGUMENTS)
    with server:
        server.wait_until_ready()
        answers = server.chat_all(
            make_prompts("reference", 48), max_tokens=24, concurrency=16
        )
    return by_index(answers)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    make_bundle(folder / "bundle", ORGANISM)
    daemon = Daemon(folder)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(
    daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLMServer]:
    """A tapped server, started while no daemon is there."""
    server = VLLMServer(
        str(ORGANISM),
        capture={
            "hook_points": list(HOOK_POINTS),
            "address": daemon.listen,
            "buffer_mib": 8,
        },
        log=tmp_path_factory.mktemp("tapped") / "vllm.log",
        # vLLM's default of 0 kills its workers before they can say goodbye.
        arguments=[*ARGUMENTS, "--shutdown-timeout=10"],
    )
    with server:
        server.wait_until_ready()
        yield server


def send(server: VLLMServer, name: str) -> list[str]:
    """Send the prompts under *name*; return the texts in order."""
    return by_index(
        server.chat_all(make_prompts(name, 48), max_tokens=24, concurrency=16)
    )


def send_until(
    server: VLLMServer, name: str, is_enough: threading.Event
) -> list[list[str]]:
    """Send the prompts again and again, twice at least; return each round's texts."""
    rounds: list[list[str]] = []
    while len(rounds) < 2 or not is_enough.is_set():
        rounds.append(send(server, f"{name}-{len(rounds)}"))
    return rounds


def test_serving_goes_on_without_a_daemon(
    server: VLLMServer, daemon: Daemon, reference: list[str]
) -> None:
    """
    With no daemon at all the answers are an untapped server's, and what was missed is
    on record, as disconnected, within seconds of the daemon's first start.
    """
    assert reference == send(server, "absent")

    daemon.start()
    status = daemon.wait_for(lambda s: s.n_tokens_lost["disconnected"] > 0, 30)

    assert status.n_requests["unscanned"] >= 48
    assert [g for g in daemon.audit("gaps") if g["reason"] == "disconnected"]


def test_a_connected_daemon_scans_everything(
    server: VLLMServer, daemon: Daemon, reference: list[str]
) -> None:
    """
    Once connected, every request is scanned whole and answered as before.
    """
    before = daemon.status()

    assert reference == send(server, "scanned")

    status = daemon.wait_for(
        lambda s: s.n_requests["scanned"] >= before.n_requests["scanned"] + 48, 30
    )
    lost = dict(status.n_tokens_lost)
    assert dict(before.n_tokens_lost) == lost
    assert status.n_tokens_expected == status.n_tokens_scored + sum(lost.values())


def test_a_stopped_daemon_stops_nobody(
    server: VLLMServer, daemon: Daemon, reference: list[str]
) -> None:
    """
    SIGSTOP in traffic: all requests answer the same; after SIGCONT it catches up.
    """
    before = sum(daemon.status().n_requests.values())
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(send, server, "stopped")
        daemon.wait_for(lambda s: sum(s.n_requests.values()) > before, 30)
        daemon.signal(signal.SIGSTOP)
        try:
            assert reference == answers.result()
        finally:
            daemon.signal(signal.SIGCONT)

    status = daemon.wait_for(lambda s: sum(s.n_requests.values()) >= before + 48, 30)
    lost = sum(status.n_tokens_lost.values())
    assert status.n_tokens_expected == status.n_tokens_scored + lost


def test_a_killed_daemon_harms_nobody_and_comes_back(
    server: VLLMServer, daemon: Daemon, reference: list[str]
) -> None:
    """
    SIGKILL in traffic: answers are the same, the stream resumes by itself within 5 s
    of a restart, the gap is on record, and no request cut in two counts as scanned.
    """
    before = sum(daemon.status().n_requests.values())
    n_gaps = len(daemon.audit("gaps"))
    is_enough = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(send_until, server, "killed", is_enough)
        try:
            daemon.wait_for(lambda s: sum(s.n_requests.values()) > before + 8, 30)
            daemon.signal(signal.SIGKILL)
            killed_at = time.time()
            daemon.start()
            daemon.status()
            resumed = daemon.wait_for(lambda s: s.last_batch_at > 0, 5)
        finally:
            is_enough.set()
        assert all(reference == texts for texts in answers.result())
    finished = daemon.wait_for(lambda s: s.n_live_requests == 0, 30)

    assert "blind" != resumed.state
    lost = sum(finished.n_tokens_lost.values())
    assert finished.n_tokens_expected == finished.n_tokens_scored + lost
    down = [g for g in daemon.audit("gaps")[n_gaps:] if g["engine"] == ""]
    assert len(down) == 1
    assert float(str(down[0]["began_at"])) <= killed_at
    assert killed_at <= float(str(down[0]["ended_at"]))
    for row in daemon.audit("requests"):
        if row["verdict"] == "scanned":
            assert 0 == sum(json.loads(str(row["n_tokens_lost"])).values())


def test_a_stopped_server_says_goodbye(server: VLLMServer, daemon: Daemon) -> None:
    """
    A stop that was meant is no gap: the engine sends what it has and says so.
    """
    n_gaps = len(daemon.audit("gaps"))

    server.stop()

    daemon.wait_for(lambda s: "no engine is connected" in s.reason, 10)
    assert "goodbye" in [row["kind"] for row in daemon.audit("events")]
    assert n_gaps == len(daemon.audit("gaps"))
