"""Pipeline parallel: two stages, each with a hook point, are watched as one engine."""

import signal
from pathlib import Path

import pytest

from probes.bank import ProjectionBank
from service.wire import bank_to_proto
from tests.e2e.bundles import make_bundle
from tests.e2e.covering import cover, make_probes, make_shared_requests
from tests.e2e.daemons import Daemon
from tests.e2e.engines import HOOK_POINTS, ORGANISM, run_engine

pytestmark = pytest.mark.vllm

PIPELINE = {
    "pipeline_parallel_size": 2,
    "worker_cls": "pipeline_worker.PipelineWorker",
    "environment": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
}


@pytest.mark.parametrize(
    ("hook_points", "enforce_eager"),
    [(HOOK_POINTS, False), (HOOK_POINTS[:1], True)],
    ids=["both", "first"],
)
def test_every_position_is_judged_over_both_stages(
    tmp_path: Path, hook_points: tuple[str, ...], enforce_eager: bool
) -> None:
    """
    Shared prefixes, aborts and preemption, under torch.compile too: each stage with a
    hook point sends its own, and joined they are scored as a reference without stages.
    """
    probes = [probe for probe in make_probes() if probe.hook_point in hook_points]

    run = run_engine(
        tmp_path,
        mode="pushdown",
        enforce_eager=enforce_eager,
        n_requests=0,
        requests=make_shared_requests(48, 96, seed=3),
        bank=bank_to_proto(ProjectionBank.compile(probes)),
        enable_prefix_caching=True,
        block_size=32,
        num_gpu_blocks_override=18,
        capture={"hook_points": list(hook_points)},
        **PIPELINE,  # type: ignore[arg-type]
    )

    assert {batch.rank for batch in run.batches} == set(range(len(hook_points)))
    for rank, hook_point in enumerate(hook_points):
        of_rank = [b for b in run.batches if b.rank == rank and b.columns]
        assert {(hook_point,)} == {tuple(batch.columns) for batch in of_rank}
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


def test_a_daemon_scans_every_request_of_two_stages(tmp_path: Path) -> None:
    """By a ring a stage, to one daemon: requests are scanned, and no token is lost."""
    make_bundle(tmp_path / "bundle", ORGANISM)
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        daemon.status()
        run = run_engine(
            tmp_path / "run",
            mode="pushdown",
            enforce_eager=True,
            n_requests=12,
            capture={"address": daemon.listen, "transport": "ring"},
            **PIPELINE,  # type: ignore[arg-type]
        )
        status = daemon.wait_for_ends(12)
    finally:
        daemon.signal(signal.SIGKILL)

    n_tokens = sum(
        len(run.sequence(r["request_id"]))
        for r in run.requests
        if r["abort_at_step"] is None
    )
    assert not {r: n for r, n in status.n_tokens_lost.items() if n}
    assert status.n_tokens_scored == status.n_tokens_expected >= n_tokens
    assert {"scanned": 12} == {v: n for v, n in status.n_requests.items() if n}
    hellos = [str(e["detail"]) for e in daemon.audit("events") if e["kind"] == "hello"]
    assert [0, 1] == sorted("rank 1 of" in detail for detail in hellos)
