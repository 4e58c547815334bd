"""vLLM's compile cache never brings back a graph without the tap."""

from pathlib import Path

import pytest

from tests.e2e.engines import HOOK_POINTS, EngineRun, run_engine
from tests.e2e.test_rows import compare_run

pytestmark = pytest.mark.vllm

N_REQUESTS = 8
LOADED = "Directly load AOT compilation"


def start(folder: Path, cache: Path, *, is_tapped: bool) -> EngineRun:
    """Run an engine that compiles as on a GPU, with vLLM's cache in *cache*."""
    return run_engine(
        folder,
        mode="pushdown",
        enforce_eager=False,
        n_requests=N_REQUESTS,
        is_tapped=is_tapped,
        is_forced_compile=True,
        cache_root=cache,
    )


def is_right(run: EngineRun) -> bool:
    """Whether every row came, once, and is the reference's, at both hook points."""
    found = [compare_run(run, site) for site in range(len(HOOK_POINTS))]
    return all(
        (one.n_missing, one.n_unasked, one.n_wrong_token, one.n_repeated) == (0,) * 4
        and one.n_rows > 500
        and one.worst < 1e-4
        for one in found
    )


def test_a_compile_cache_never_hides_the_tap(tmp_path: Path) -> None:
    """
    Untapped first, then armed on the same cache, then armed again on what that left:
    both report every row, and right, the second from vLLM's own cached graph.
    """
    cache = tmp_path / "cache"
    untapped = start(tmp_path / "untapped", cache, is_tapped=False)
    cold = start(tmp_path / "cold", cache, is_tapped=True)
    warm = start(tmp_path / "warm", cache, is_tapped=True)

    assert [] == untapped.batches
    assert LOADED not in (tmp_path / "cold" / "engine.log").read_text()
    assert LOADED in (tmp_path / "warm" / "engine.log").read_text()
    assert is_right(cold)
    assert is_right(warm)
