"""With vLLM's prefix cache on, every position is judged, by the right numbers."""

import json
from pathlib import Path

import pytest

from probes.bank import ProjectionBank
from service.wire import bank_to_proto
from tests.e2e.covering import cover, make_probes, make_shared_requests
from tests.e2e.engines import ORGANISM, run_engine

pytestmark = pytest.mark.vllm


def test_every_position_is_scored_or_shadowed(tmp_path: Path) -> None:
    """
    Shared prefixes, several answers to a prompt, chunked prefill, aborts, and too few
    KV blocks: nothing is lost, and every score is that of the uncached reference.
    """
    probes = make_probes(
        json.loads((ORGANISM / "config.json").read_text())["hidden_size"]
    )

    run = run_engine(
        tmp_path,
        mode="pushdown",
        enforce_eager=True,
        n_requests=0,
        requests=make_shared_requests(48, 96, seed=3),
        bank=bank_to_proto(ProjectionBank.compile(probes)),
        enable_prefix_caching=True,
        block_size=32,
        num_gpu_blocks_override=18,
    )

    found = cover(run, probes)
    assert any(batch.preempted for batch in run.batches)
    assert found.n_shadowed > 48 * 64
    assert (0, 0, 0, 0) == (
        found.n_lost,
        found.n_missing,
        found.n_beyond,
        found.n_wrong_token,
    )
    assert found.worst < 1e-4
