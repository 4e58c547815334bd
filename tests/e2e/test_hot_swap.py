"""Detector sets change under a real engine's traffic; nothing is lost or mixed."""

import json
import logging
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from probes import LinearProbe, Max, fixed_thresholds, identity_of, new_bundle
from probes.bundle import Bundle, save_bundle
from service.daemon.audit.reader import AuditReader
from service.serving import VLLMServer
from tests.e2e.bundles import HOOK_POINTS
from tests.e2e.daemons import Daemon
from tests.e2e.engines import ORGANISM
from tests.e2e.rows import reference_activations
from tests.e2e.test_faults import make_prompts
from tests.service.builders import innerwatch

pytestmark = pytest.mark.vllm
_log = logging.getLogger(__name__)

# Graphs of torch.compile, as served: a swap changes what is in their buffers only.
ARGUMENTS = [
    "--dtype=float32",
    "--max-model-len=512",
    "--max-num-seqs=8",
    "--no-enable-prefix-caching",
    "--shutdown-timeout=10",
]
_ALWAYS = -1e30
"""A threshold that every request is above: the record of a flag holds its scores."""
_N_PROMPTS = 24


def make_bundle(name: str, sizes: tuple[int, int], seed: int) -> Bundle:
    """A bundle of random probes that flag everything, so many at each hook point."""
    identity = identity_of(ORGANISM, "float32")
    rng = np.random.default_rng(seed)
    detectors = [
        LinearProbe(
            name=f"probe-{site}-{i}",
            hook_point=hook_point,
            weight=rng.standard_normal(identity.d_model).astype(np.float32),
            bias=float(seed),
            aggregator=Max(),
        )
        for site, hook_point in enumerate(HOOK_POINTS)
        for i in range(sizes[site])
    ]
    return new_bundle(
        name=name,
        version="1",
        identity=identity,
        detectors=detectors,
        calibration=fixed_thresholds({d.name: _ALWAYS for d in detectors}),
    )


BUNDLES = {"one": ((2, 1), 1), "two": ((1, 3), 2), "three": ((5, 0), 3)}
"""What each has at the two hook points. They share names, and no column."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    for name, (sizes, seed) in BUNDLES.items():
        save_bundle(folder / name, make_bundle(name, sizes, seed))
    daemon = Daemon(folder, bundle="one", keep="token_ids")
    daemon.start()
    yield daemon
    assert daemon.process is not None
    if daemon.process.poll() is None:
        daemon.signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(
    daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VLLMServer]:
    server = VLLMServer(
        str(ORGANISM),
        capture={"hook_points": list(HOOK_POINTS), "address": daemon.listen},
        log=tmp_path_factory.mktemp("tapped") / "vllm.log",
        arguments=ARGUMENTS,
    )
    with server:
        server.wait_until_ready()
        daemon.wait_for(lambda s: s.state == "watching", 60)
        yield server


def detectors(daemon: Daemon, *arguments: str) -> None:
    """Run ``innerwatch detectors``, which has to work."""
    done = innerwatch("detectors", *arguments, "--address", daemon.listen)
    assert 0 == done.returncode, done.stderr


def send_until(server: VLLMServer, is_enough: threading.Event) -> list[str]:
    """Send prompts without a pause; return the ids of those that were answered."""
    ids: list[str] = []
    while not is_enough.is_set():
        prompts = make_prompts(f"round{len(ids)}", _N_PROMPTS)
        ids += server.chat_all(prompts, max_tokens=24, concurrency=12)
    return ids


def swap(daemon: Daemon) -> list[str]:
    """Do everything there is to do, in traffic; return what was live, in order."""
    folder = daemon.folder

    def wait(n_more: int) -> None:
        n_before = sum(daemon.status().n_requests.values())
        daemon.wait_for(lambda s: sum(s.n_requests.values()) >= n_before + n_more, 120)

    wait(20)
    detectors(daemon, "load", str(folder / "two"))
    detectors(daemon, "shadow", "two:1")
    wait(30)
    detectors(daemon, "promote", "two:1", "--wait")
    wait(20)
    detectors(daemon, "rollback", "--wait")
    wait(20)
    detectors(daemon, "load", str(folder / "three"))
    # While requests that began under the set before still run, it would be refused.
    daemon.wait_for(lambda s: all(d.state != "retiring" for d in s.detectors.sets), 30)
    detectors(daemon, "promote", "three:1", "--wait")
    wait(20)
    daemon.wait_for(lambda s: all(d.state != "retiring" for d in s.detectors.sets), 30)
    detectors(daemon, "promote", "two:1", "--wait")
    wait(20)
    return ["one:1", "two:1", "one:1", "three:1", "two:1"]


def test_sets_change_in_traffic(server: VLLMServer, daemon: Daemon) -> None:
    """
    Loaded, shadowed, promoted, rolled back: no request is lost, and each has the
    scores that the set it began under gives it offline.
    """
    is_enough = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        traffic = pool.submit(send_until, server, is_enough)
        try:
            lives = swap(daemon)
        finally:
            is_enough.set()
        ids = traffic.result()
    status = daemon.wait_for_ends(len(ids))

    assert status.n_tokens_expected == status.n_tokens_scored
    rows = daemon.audit("requests")
    assert {"scanned"} == {row["verdict"] for row in rows}
    assert len(ids) == len(rows) == status.n_requests["scanned"]
    assert all(sum(str(row["request_id"]).count(i) for row in rows) for i in ids)
    digests = [
        str(e["detail"]).split("digest ")[1][:64]
        for e in daemon.audit("events")
        if e["kind"] in ("start", "detectors_live") and "digest " in str(e["detail"])
    ]
    own = {name: make_bundle(name, *made) for name, made in BUNDLES.items()}
    assert [own[name.removesuffix(":1")].digest for name in lives[1:]] == digests
    by_digest = {bundle.digest: bundle for bundle in own.values()}
    n_each = dict.fromkeys(own, 0)
    for row in rows:
        n_each[by_digest[str(row["bundle_digest"])].name] += 1
    assert min(n_each.values()) >= 10, n_each
    worst = compare(daemon, rows, by_digest)
    _log.info("%d requests, %s, worst difference %.1e", len(rows), n_each, worst)
    assert worst < 1e-4
    shadow = next(d.shadow for d in status.detectors.sets if d.name == "two:1")
    assert shadow.n_requests >= 10
    assert shadow.n_requests == shadow.n_requests_flagged == shadow.n_flagged_live


def compare(
    daemon: Daemon, rows: list[dict[str, object]], by_digest: dict[str, Bundle]
) -> float:
    """The largest difference of a score from Hugging Face's model's, relative."""
    reader = AuditReader(daemon.folder / "audit")
    kept = {
        str(row["request_row"]): reader.request(
            str(row["engine"]), str(row["request_id"])
        )
        for row in rows
    }
    sequences = {
        name: np.frombuffer(one.token_ids, "<i4").tolist()
        for name, one in kept.items()
        if one is not None
    }
    distinct = {str(tokens): tokens for tokens in sequences.values()}
    activations = {
        hook_point: reference_activations(ORGANISM, distinct, layer)
        for layer, hook_point in ((1, HOOK_POINTS[0]), (2, HOOK_POINTS[1]))
    }
    found: dict[tuple[str, str], NDArray[np.float32]] = {
        (name, detector): np.frombuffer(scores, "<f4")
        for name, one in kept.items()
        if one is not None
        for detector, scores in one.scores.items()
    }
    worst = 0.0
    for row in rows:
        name = str(row["request_row"])
        statistics = json.loads(str(row["statistics"]))
        detectors = by_digest[str(row["bundle_digest"])].detectors
        assert [d.name for d in detectors] == list(statistics)
        for detector in detectors:
            assert isinstance(detector, LinearProbe)
            x = activations[detector.hook_point][str(sequences[name])]
            expected = x @ detector.weight + np.float32(detector.bias)
            scale = float(np.abs(expected).max())
            difference = np.abs(found[name, detector.name] - expected).max()
            worst = max(worst, float(difference) / scale)
            worst = max(worst, abs(statistics[detector.name] - expected.max()) / scale)
    return worst


def test_nothing_is_compiled_or_connected_again(
    server: VLLMServer, daemon: Daemon
) -> None:
    """
    A swap writes into buffers: the graph and the stream are those of the start.
    """
    _, after = server.log.read_text(errors="replace").split("Warming up done")

    assert "torch_aot_compile" not in after
    assert "compiled function" not in after
    assert 1 == [e["kind"] for e in daemon.audit("events")].count("hello")
