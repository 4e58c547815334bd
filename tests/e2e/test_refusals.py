"""What can not be watched as asked does not start; what is refused still serves."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from probes.bundle import load_bundle, new_bundle, save_bundle
from service.serving import ServingError, VLLMServer
from tests.e2e.bundles import HOOK_POINTS, make_bundle
from tests.e2e.daemons import Daemon
from tests.e2e.engines import ORGANISM
from tests.e2e.test_faults import ARGUMENTS, make_prompts

pytestmark = pytest.mark.vllm

DRAFT = json.dumps(
    {"method": "draft_model", "model": str(ORGANISM), "num_speculative_tokens": 2}
)


@pytest.mark.parametrize(
    ("capture", "arguments", "words"),
    [
        ({"hook_points": list(HOOK_POINTS), "layers": [1]}, [], "layers: unknown key"),
        (
            {"hook_points": ["blocks.9.hook_resid_post"]},
            [],
            "blocks.9.hook_resid_post: the model has 4 blocks",
        ),
        (
            {"hook_points": list(HOOK_POINTS)},
            [f"--speculative-config={DRAFT}"],
            "speculative decoding by a draft model: its blocks",
        ),
    ],
    ids=["an unknown key", "a block too far", "an unsupported mode"],
)
def test_a_server_that_can_not_be_watched_does_not_start(
    tmp_path: Path, capture: dict[str, object], arguments: list[str], words: str
) -> None:
    """
    It ends with a status that is not 0 and a line that names the thing.
    """
    server = VLLMServer(
        str(ORGANISM),
        capture=capture,
        log=tmp_path / "vllm.log",
        arguments=[*ARGUMENTS, *arguments],
    )
    with server, pytest.raises(ServingError, match=words):
        server.wait_until_ready()


def test_an_engine_of_other_weights_serves_and_the_daemon_is_blind(
    tmp_path: Path,
) -> None:
    """
    A bundle for other weights is refused by name; requests are answered meanwhile.
    """
    make_bundle(tmp_path / "bundle", ORGANISM)
    ours = load_bundle(tmp_path / "bundle")
    other = dataclasses.replace(ours.identity, weights_sha256="0" * 64)
    theirs = new_bundle(
        name=ours.name,
        version=ours.version,
        identity=other,
        detectors=ours.detectors,
        calibration=ours.calibration,
    )
    save_bundle(tmp_path / "other", theirs)
    daemon = Daemon(tmp_path, bundle="other")
    daemon.start()
    server = VLLMServer(
        str(ORGANISM),
        capture={"hook_points": list(HOOK_POINTS), "address": daemon.listen},
        log=tmp_path / "vllm.log",
        arguments=ARGUMENTS,
    )
    try:
        with server:
            server.wait_until_ready()
            answers = server.chat_all(
                make_prompts("refused", 4), max_tokens=4, concurrency=4
            )
            status = daemon.wait_for(lambda s: s.state == "blind", 30)
    finally:
        daemon.signal(signal.SIGTERM)

    assert 4 == len(answers)
    assert "weights_sha256" in status.reason
    assert 0 == status.n_tokens_scored
    log = (tmp_path / "vllm.log").read_text()
    assert 1 == log.count("innerwatch: the daemon refused this engine")
