"""Steps that do not go as planned: preempted requests, and layouts nobody can read."""

from collections import Counter
from pathlib import Path

import pytest

from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.e2e.engines import HOOK_POINTS, run_engine
from tests.e2e.rows import rows_at
from tests.e2e.test_rows import compare_run

pytestmark = pytest.mark.vllm


def test_preempted_requests_are_told_and_their_rows_stay_right(tmp_path: Path) -> None:
    """
    With too few KV blocks for the batch, requests are preempted and computed again:
    no position is missing, and what came last equals the reference.
    """
    run = run_engine(
        tmp_path,
        mode="pushdown",
        enforce_eager=True,
        n_requests=24,
        block_size=32,
        num_gpu_blocks_override=24,
        most_generated=60,
    )

    found = compare_run(run, 0)

    preempted = [i for batch in run.batches for i in batch.preempted]
    assert preempted
    assert found.n_repeated > 0
    assert (0, 0) == (found.n_missing, found.n_wrong_token)
    assert found.worst < 1e-4


def test_rows_of_an_unreadable_layout_are_lost_by_name(tmp_path: Path) -> None:
    """
    Every position of every request arrives once: as a row, or named in a gap.
    """
    run = run_engine(
        tmp_path,
        mode="pushdown",
        enforce_eager=True,
        n_requests=16,
        worker_cls="unreadable_worker.UnreadableWorker",
    )

    rows, _ = rows_at(run.batches, HOOK_POINTS[0])
    seen = Counter((name, position) for name in rows for position in rows[name])
    for gap in run.gaps:
        assert gap.reason == pb.LOSS_REASON_LAYOUT_UNREADABLE
        assert gap.n_tokens == sum(lost.n_tokens for lost in gap.lost)
        for lost in gap.lost:
            name = lost.request_id.rsplit("-", 1)[0]
            first = lost.first_position
            seen.update((name, first + i) for i in range(lost.n_tokens))
    assert run.gaps
    assert set(seen.values()) == {1}
    for request in run.requests:
        if request["abort_at_step"] is None:
            name = request["request_id"]
            n_tokens = len(run.sequence(name))
            assert {(name, i) for i in range(n_tokens)} == {
                key for key in seen if key[0] == name
            }
