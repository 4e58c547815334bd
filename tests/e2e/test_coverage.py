"""Whatever vLLM does with a request, every position is judged, by the right numbers."""

from pathlib import Path

import pytest

from probes.bank import ProjectionBank
from service.wire import bank_to_proto
from tests.e2e.covering import NGRAM, cover, make_probes, make_shared_requests
from tests.e2e.engines import run_engine

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("speculative_config", [None, NGRAM], ids=["plain", "ngram"])
def test_every_position_is_judged_once(
    tmp_path: Path, speculative_config: dict[str, object] | None
) -> None:
    """
    Shared prefixes, several answers to a prompt, chunked prefill, aborts, too few KV
    blocks, and drafts that are rejected: nothing is lost, nothing is too much, and
    every score is that of a reference without any of it.
    """
    probes = make_probes()

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
        speculative_config=speculative_config,
    )

    found = cover(run, probes)
    assert any(batch.preempted for batch in run.batches)
    n_drafts = sum(int(batch.n_drafts.sum()) for batch in run.batches)
    assert (n_drafts > 500) == (speculative_config is not None)
    assert found.n_shadowed > 48 * 64
    assert (0, 0, 0, 0) == (
        found.n_lost,
        found.n_missing,
        found.n_beyond,
        found.n_wrong_token,
    )
    assert found.worst < 1e-4
