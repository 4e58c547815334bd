"""Steps that do not go as planned: preempted requests, and layouts nobody can read."""

from collections import Counter
from pathlib import Path

import pytest

from monitor.records import LossReason, Verdict
from probes.bank import ProjectionBank
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import bank_to_proto
from tests.e2e.covering import (
    make_probes,
    make_shared_requests,
    watch_all,
    watching,
    worst_scores,
)
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


def test_rows_of_the_wrong_request_are_noticed(tmp_path: Path) -> None:
    """
    Rows told in the scheduler's order, as other projects did: no request whose rows
    were another's is called scanned, and the reason is named.
    """
    probes = make_probes()
    run = run_engine(
        tmp_path,
        mode="pushdown",
        enforce_eager=True,
        n_requests=0,
        requests=make_shared_requests(24, 4, seed=3),
        bank=bank_to_proto(ProjectionBank.compile(probes)),
        worker_cls="confused_worker.ConfusedWorker",
    )

    watch = watching(probes)
    summaries = watch_all(watch, run)

    assert watch.totals.tokens.n_lost[LossReason.MISATTRIBUTED] > 0
    worst = worst_scores(run, summaries, probes)
    scanned = {n for n, s in summaries.items() if s.verdict is Verdict.SCANNED}
    assert max(worst.values()) > 0.01
    assert all(worst[name] < 1e-4 for name in scanned)


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
