"""Requests with a LoRA adapter are judged under it, and carry its name."""

from pathlib import Path

import pytest

from monitor.records import Verdict
from probes.bank import ProjectionBank
from service.wire import bank_to_proto
from tests.e2e.covering import (
    make_probes,
    make_shared_requests,
    watch_all,
    watching,
    worst_scores,
)
from tests.e2e.engines import ORGANISM, run_engine
from tests.e2e.lora import make_adapter

pytestmark = pytest.mark.vllm


def test_an_adapters_requests_are_its_own(tmp_path: Path) -> None:
    """
    Among requests that share a prefix, with and without an adapter: each is scanned,
    named, and scored as by the model that it was served with.
    """
    adapter, merged = make_adapter(tmp_path / "lora")
    probes = make_probes()
    requests = make_shared_requests(20, 64, seed=5)
    for i, request in enumerate(requests):
        request |= {"has_adapter": i % 2 == 0, "abort_at_step": None}

    run = run_engine(
        tmp_path / "run",
        mode="pushdown",
        enforce_eager=True,
        n_requests=0,
        requests=requests,
        bank=bank_to_proto(ProjectionBank.compile(probes)),
        adapter=adapter,
        enable_prefix_caching=True,
        block_size=32,
        enable_lora=True,
        max_lora_rank=8,
        # With one slot the CPU build of 0.32.0 applies the adapter to requests without
        # one, too.
        max_loras=2,
    )

    summaries = watch_all(watching(probes), run)
    with_adapter = {r["request_id"] for r in requests if r["has_adapter"]}
    for model, name in ((merged, "adapter"), (ORGANISM, "")):
        own = {
            key: summary
            for key, summary in summaries.items()
            if (key.rsplit("_", 1)[-1] in with_adapter) == bool(name)
        }
        assert {Verdict.SCANNED} == {summary.verdict for summary in own.values()}
        assert {name} == {summary.adapter for summary in own.values()}
        assert sum(summary.n_tokens_shadowed for summary in own.values()) > 0
        assert max(worst_scores(run, own, probes, model).values()) < 1e-4
