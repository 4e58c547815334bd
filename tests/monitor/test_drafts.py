"""Rows of draft tokens count once the engine has kept them, and not before."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.core import BatchError, Monitor
from monitor.records import Gap, LossReason, LostRange, RequestSummary, Verdict
from tests.monitor.builders import ENGINE, batch, monitor
from tests.monitor.paged_engine import PagedEngine
from tests.monitor.test_shadow import SHADOW, alone


def end(
    watch: Monitor, engine: PagedEngine, name: str, *, is_told: bool = True
) -> RequestSummary:
    """End a request as an engine does: with its number of positions."""
    request = engine.requests[name]
    engine.step += 1
    n_positions = {name: request.n_computed} if is_told else {}
    last = replace(batch(step=engine.step), finished=(name,), n_positions=n_positions)
    watch.observe(last)
    ((_, summary),) = watch.end(ENGINE, last.finished)
    engine.release(name)
    return summary


@pytest.mark.parametrize("n_kept", [0, 1, 3])
def test_the_next_step_says_which_drafts_were_kept(n_kept: int) -> None:
    """Kept ones are scored, rejected ones neither scored nor counted, nor flagged."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(5))
    flags = watch.observe(engine.run(("a", 5), n_drafts=3, n_kept=n_kept))
    assert 5 == watch.coverage(ENGINE, "a").n_scored
    flags += watch.observe(engine.run(("a", 1)))
    assert 6 + n_kept == watch.coverage(ENGINE, "a").n_expected
    tokens = engine.requests["a"].tokens
    summary = end(watch, engine, "a")
    assert (Verdict.SCANNED, 6 + n_kept) == (summary.verdict, summary.n_tokens_scored)
    assert alone(tokens, 5).statistics == summary.statistics
    assert [] == flags


def test_the_end_says_which_drafts_were_kept() -> None:
    """Drafts of the last step count as far as the request's positions go."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(5))
    watch.observe(engine.run(("a", 5), n_drafts=3, n_kept=2))
    summary = end(watch, engine, "a")
    assert (Verdict.SCANNED, 7) == (summary.verdict, summary.n_tokens_scored)


def test_an_end_that_does_not_say_is_partial() -> None:
    """Rows that nobody decided on are not scored, and the request is not whole."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(5))
    watch.observe(engine.run(("a", 5), n_drafts=3, n_kept=2))
    summary = end(watch, engine, "a", is_told=False)
    assert (Verdict.PARTIAL, 5) == (summary.verdict, summary.n_tokens_scored)


def test_drafts_decided_in_a_gap_are_lost() -> None:
    """What was kept is a hole before the gap: lost, by its own reason."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(5))
    watch.observe(engine.run(("a", 5), n_drafts=3, n_kept=2))
    engine.run(("a", 1))
    watch.record_gap(
        Gap(
            engine=ENGINE,
            rank=0,
            reason=LossReason.BUFFER_FULL,
            first_step=2,
            last_step=2,
            n_tokens=1,
            lost=(LostRange(request_id="a", first_position=7, n_tokens=1),),
        )
    )
    summary = end(watch, engine, "a")
    assert {LossReason.NOT_RECEIVED: 2, LossReason.BUFFER_FULL: 1} == (
        summary.n_tokens_lost
    )


def test_a_step_in_parts_is_decided_on_whole() -> None:
    """Drafts that begin in one part of a step and go on in the next belong together."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(4))
    whole = engine.run(("a", 4), n_drafts=3, n_kept=2)
    for part, rows in enumerate((slice(0, 5), slice(5, 7))):
        watch.observe(
            replace(
                whole,
                step=1 + part,
                columns={h: v[rows] for h, v in whole.columns.items()},
                squared_norms={h: v[rows] for h, v in whole.squared_norms.items()},
                row_offsets=np.array([0, rows.stop - rows.start]),
                first_positions=np.array([rows.start]),
                token_ids=whole.token_ids[rows],
                slots=whole.slots[rows],
                n_drafts=np.array([1 if part == 0 else 2]),
            )
        )
    engine.step = 3
    tokens = engine.requests["a"].tokens
    summary = end(watch, engine, "a")
    assert (Verdict.SCANNED, 6) == (summary.verdict, summary.n_tokens_scored)
    assert alone(tokens, 4).statistics == summary.statistics


def test_more_drafts_than_rows_are_refused() -> None:
    """A batch whose drafts exceed its rows is malformed."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(4))
    wrong = replace(engine.run(("a", 4)), n_drafts=np.array([5]))
    with pytest.raises(BatchError, match="n_drafts"):
        watch.observe(wrong)


def test_an_end_too_far_is_refused() -> None:
    """A request can not have more positions than any is believed to have."""
    with pytest.raises(BatchError, match="n_positions: expected up to 65536"):
        monitor().observe(replace(batch(), finished=("a",), n_positions={"a": 1 << 31}))


def test_drafts_of_a_lost_last_step_are_lost() -> None:
    """What the end says was kept, and nobody has rows of, is counted."""
    engine, watch = PagedEngine(64), monitor()
    engine.start("a", range(5))
    watch.observe(engine.run(("a", 5)))
    engine.run(("a", 1), n_drafts=3, n_kept=2)
    summary = end(watch, engine, "a")
    assert {LossReason.NOT_RECEIVED: 3} == summary.n_tokens_lost


Actions = st.lists(
    st.tuples(
        st.sampled_from(["run", "run", "run", "run", "start", "preempt", "end"]),
        st.integers(0, 4),
        st.integers(1, 6),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(Actions, st.integers(8, 24), st.booleans())
def test_drafts_change_nothing(
    actions: list[tuple[str, int, int, int, int]], n_blocks: int, ends_late: bool
) -> None:
    """
    However many drafts are made and kept, with shared blocks and preemptions: every
    position of a request is judged once, and as without drafts.
    """
    engine, watch = PagedEngine(n_blocks), monitor(max_shadow_bytes=SHADOW)
    prompts = [[0] * 9, [0] * 12, [0, 0, 0, 0, 5, 5, 5, 5, 5], [7] * 10]
    n_started = 0

    def check(name: str) -> None:
        request = engine.requests[name]
        summary = end(watch, engine, name)
        expected = alone(request.tokens[: request.n_computed], request.n_prompt)
        n_judged = summary.n_tokens_scored + summary.n_tokens_shadowed
        assert (Verdict.SCANNED, request.n_computed) == (summary.verdict, n_judged)
        for detector, value in expected.statistics.items():
            assert value == pytest.approx(summary.statistics[detector], abs=1e-6)

    for action, pick, n, n_drafts, n_kept in actions:
        names = list(engine.requests)
        name = names[pick % len(names)] if names else ""
        if action == "start" and len(names) < 4:
            n_started += 1
            engine.start(f"r{n_started}", prompts[pick % len(prompts)])
        elif action == "run" and name and engine.room_for(name, n + n_drafts):
            request = engine.requests[name]
            # Drafts follow the last known token, and are made when that is computed.
            n = max(n, len(request.tokens) - request.n_computed)
            if engine.room_for(name, n + n_drafts):
                kept = min(n_kept, n_drafts)
                watch.observe(engine.run((name, n), n_drafts=n_drafts, n_kept=kept))
        elif action == "preempt" and name and not ends_late:
            engine.preempt(name)
        elif action == "end" and name and engine.requests[name].n_computed:
            _catch_up(engine, watch, name)
            check(name)
    for name in list(engine.requests):
        if engine.requests[name].n_computed:
            _catch_up(engine, watch, name)
            check(name)
    assert watch.totals.tokens.is_balanced


def _catch_up(engine: PagedEngine, watch: Monitor, name: str) -> None:
    """A request that was preempted has to be computed again before it can end."""
    request = engine.requests[name]
    n = len(request.tokens) - request.n_computed
    if n:
        while not engine.room_for(name, n):
            other = next(o for o in engine.requests if o != name)
            engine.preempt(other)
        watch.observe(engine.run((name, n)))
