"""vLLM's compile cache never brings back a graph without the tap."""

from pathlib import Path

import pytest

from tests.e2e.engines import run_engine
from tests.e2e.rows import rows_at

pytestmark = pytest.mark.vllm


def test_arming_after_an_untapped_start_sees_every_row(tmp_path: Path) -> None:
    """
    A server started untapped, then armed on the same cache, reports every row.
    """
    cache = tmp_path / "cache"
    untapped = run_engine(
        tmp_path / "untapped",
        mode="pushdown",
        enforce_eager=False,
        n_requests=4,
        is_tapped=False,
        is_forced_compile=True,
        cache_root=cache,
    )

    armed = run_engine(
        tmp_path / "armed",
        mode="pushdown",
        enforce_eager=False,
        n_requests=4,
        is_forced_compile=True,
        cache_root=cache,
    )

    assert untapped.batches == []
    assert "torch_aot_compile" in {p.name for p in cache.rglob("*") if p.is_dir()}
    rows, _ = rows_at(armed.batches, "blocks.1.hook_resid_post")
    for request in armed.requests:
        name = request["request_id"]
        if request["abort_at_step"] is None:
            assert len(armed.sequence(name)) == len(rows[name])
            assert all(norm >= 0 for _, _, norm in rows[name].values())
