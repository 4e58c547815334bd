"""Tokens from the prefix cache are judged by what was said of their slots, or lost."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.core import BatchError, Monitor
from monitor.records import LossReason, RequestSummary, StepBatch, Verdict
from tests.monitor.builders import ENGINE, Rows, batch, monitor
from tests.monitor.paged_engine import PagedEngine, activation

SHADOW = 1 << 16


def alone(tokens: Sequence[int], n_prompt: int, adapter: str = "") -> RequestSummary:
    """Return the summary of a request whose tokens are all computed at once."""
    values = [activation(tokens[: p + 1], adapter) for p in range(len(tokens))]
    watch = monitor()
    watch.observe(batch(Rows("x", 0, values, n_prompt_tokens=n_prompt)))
    return watch.finish(ENGINE, "x")[1]


def finish(watch: Monitor, engine: PagedEngine, name: str) -> RequestSummary:
    engine.release(name)
    return watch.finish(ENGINE, name)[1]


def test_a_request_behind_a_shared_prefix_is_scanned_whole() -> None:
    """Its statistics are those it would have without the cache."""
    engine, watch = PagedEngine(64), monitor(max_shadow_bytes=SHADOW)
    prefix = list(range(16))
    for name, own in (("a", [50, 51]), ("b", [60, 61, 62])):
        engine.start(name, prefix + own)
        n = len(prefix + own) - engine.requests[name].n_computed
        watch.observe(engine.run((name, n)))
        watch.observe(engine.run((name, 1)))
    tokens = engine.requests["b"].tokens
    summary = finish(watch, engine, "b")
    assert (Verdict.SCANNED, 16, 4) == (
        summary.verdict,
        summary.n_tokens_shadowed,
        summary.n_tokens_scored,
    )
    assert alone(tokens, 19).statistics == summary.statistics
    assert {} == summary.n_tokens_lost


def test_a_block_shared_in_the_step_that_fills_it_counts() -> None:
    """vLLM hands out a block before it is computed, to a request of the same step."""
    engine, watch = PagedEngine(64), monitor(max_shadow_bytes=SHADOW)
    prompt = list(range(10))
    engine.start("a", prompt)
    # As the scheduler does: what is allocated is held, though not yet computed.
    first = engine.run(("a", 10))
    engine.start("b", prompt)
    second = engine.run(("b", 2))
    a, b = Rows("a", 0, _values(prompt, 0, 10)), Rows("b", 8, _values(prompt, 8, 10), 8)
    together = replace(
        batch(b, a, step=1),
        token_ids=np.concatenate([second.token_ids, first.token_ids]),
        slots=np.concatenate([second.slots, first.slots]),
        cached={0: second.cached[0]},
    )
    watch.observe(together)
    assert 8 == watch.coverage(ENGINE, "b").n_shadowed


def _values(tokens: Sequence[int], first: int, end: int) -> list[list[float]]:
    return [activation(tokens[: p + 1]) for p in range(first, end)]


def test_what_the_shadow_does_not_know_is_lost() -> None:
    """Behind a prefix that nobody scored, a request is partial, by that reason."""
    engine, watch = PagedEngine(64), monitor(max_shadow_bytes=SHADOW)
    engine.start("a", range(10))
    engine.run(("a", 10))  # Never arrives.
    engine.start("b", range(10))
    watch.observe(engine.run(("b", 2)))
    summary = finish(watch, engine, "b")
    assert Verdict.PARTIAL is summary.verdict
    assert {LossReason.PREFIX_CACHED: 8} == summary.n_tokens_lost


@pytest.mark.parametrize(
    "changed",
    [
        {"adapters": ("other",)},
        {"weights_generation": 1},
        {"engine": "engine-2"},
    ],
    ids=["adapter", "weights", "engine"],
)
def test_evidence_is_not_shared_across(changed: dict[str, Any]) -> None:
    """The same tokens in the same slots under other weights are another matter."""
    engine, watch = PagedEngine(64), monitor(max_shadow_bytes=SHADOW)
    engine.start("a", range(10))
    watch.observe(engine.run(("a", 10)))
    engine.start("b", range(10))
    made: StepBatch = replace(engine.run(("b", 2)), **changed)
    watch.observe(made)
    coverage = watch.coverage(made.engine, "b")
    assert (0, {LossReason.PREFIX_CACHED: 8}) == (
        coverage.n_shadowed,
        coverage.copy_lost(),
    )


def test_a_slot_that_was_written_unseen_is_not_believed() -> None:
    """Another token in the slot, or the same after another prefix, is a miss."""
    engine, watch = PagedEngine(64), monitor(max_shadow_bytes=SHADOW)
    engine.start("a", [1, 2, 3, 4, 5])
    watch.observe(engine.run(("a", 5)))
    engine.start("b", [1, 2, 3, 4, 9])
    made = engine.run(("b", 1))
    prefix = made.cached[0]
    for wrong in ([1, 2, 8, 4], [9, 2, 3, 4]):
        told = replace(prefix, token_ids=np.array(wrong, dtype=np.int32))
        other = monitor(max_shadow_bytes=SHADOW)
        other.observe(
            replace(
                batch(Rows("a", 0, _values([1, 2, 3, 4, 5], 0, 5))), **_of_a(engine)
            )
        )
        other.observe(replace(made, cached={0: told}))
        found = other.coverage(ENGINE, "b").n_shadowed
        assert found == wrong.index(8 if 8 in wrong else 9)


def _of_a(engine: PagedEngine) -> dict[str, Any]:
    request = engine.requests["a"]
    return {
        "token_ids": np.array(request.tokens, dtype=np.int32),
        "slots": np.array([engine.slot(request, p) for p in range(5)], dtype=np.int32),
    }


def test_a_flag_is_raised_on_tokens_that_were_never_computed_again() -> None:
    """A request is flagged for what it shares with one that was."""
    engine, watch = PagedEngine(64), monitor(threshold=0.2, max_shadow_bytes=SHADOW)
    prompt = list(range(8))
    loudest = max(range(8), key=lambda p: activation(prompt[: p + 1])[0])
    assert loudest < 4 or activation(prompt[: loudest + 1])[0] > 0.2
    engine.start("a", [*prompt, 70])
    first = watch.observe(engine.run(("a", 9)))
    engine.start("b", [*prompt, 71])
    second = watch.observe(engine.run(("b", 1)))
    by_max = [[f for f in flags if f.detector == "max"] for flags in (first, second)]
    assert [1, 1] == [len(flags) for flags in by_max]
    assert by_max[0][0].position == by_max[1][0].position == loudest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"slots": np.zeros(3, dtype=np.int32)}, "slots: expected"),
        ({"adapters": ("a", "b")}, "adapters: expected 1 or none, got 2"),
        ({"cached": {1: None}}, "cached: expected one of 1, got 1"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(
    changed: dict[str, Any], message: str
) -> None:
    """Slots, adapters and cached prefixes fit the rows, or nothing is believed."""
    engine, watch = PagedEngine(64), monitor(max_shadow_bytes=SHADOW)
    engine.start("a", range(5))
    with pytest.raises(BatchError, match=message):
        watch.observe(replace(engine.run(("a", 5)), **changed))


Actions = st.lists(
    st.tuples(
        st.sampled_from(["run", "run", "run", "start", "start", "preempt", "finish"]),
        st.integers(0, 4),
        st.integers(1, 6),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(Actions, st.integers(6, 24), st.sampled_from([0, 40, SHADOW]), st.booleans())
def test_the_shadow_is_right_or_silent(
    actions: list[tuple[str, int, int, bool]],
    n_blocks: int,
    n_bytes: int,
    loses_batches: bool,
) -> None:
    """
    However blocks are shared, freed, taken away and used again, whatever batches get
    lost and however small the shadow: a token that counts as shadowed has the evidence
    that it would have had; and with room for all and nothing lost, none is missing.
    """
    engine, watch = PagedEngine(n_blocks), monitor(max_shadow_bytes=n_bytes)
    prompts = [[0] * 9, [0] * 12, [0, 0, 0, 0, 5, 5, 5, 5, 5], [7] * 10]
    n_started = 0
    is_whole = n_bytes == SHADOW and not loses_batches
    for action, pick, n, is_lost in actions:
        names = list(engine.requests)
        name = names[pick % len(names)] if names else ""
        if action == "start" and len(names) < 4:
            n_started += 1
            adapter = "lora" if n_started % 5 == 4 else ""
            engine.start(f"r{n_started}", prompts[pick % len(prompts)], adapter)
        elif action == "run" and name and engine.room_for(name, n):
            made = engine.run((name, n))
            if not (is_lost and loses_batches):
                watch.observe(made)
        elif action == "preempt" and name:
            engine.preempt(name)
        elif action == "finish" and name and engine.requests[name].n_computed:
            _check_end(watch, engine, name, is_whole=is_whole)
    for name in list(engine.requests):
        if engine.requests[name].n_computed:
            _check_end(watch, engine, name, is_whole=is_whole)
    assert watch.totals.tokens.is_balanced


def _check_end(
    watch: Monitor, engine: PagedEngine, name: str, *, is_whole: bool
) -> None:
    request = engine.requests[name]
    is_live = name in watch.live(ENGINE)
    summary = finish(watch, engine, name)
    if not is_live:
        return
    if is_whole:
        assert {} == summary.n_tokens_lost
    seen = request.tokens[: summary.n_tokens_scored + summary.n_tokens_shadowed]
    if summary.verdict is Verdict.SCANNED:
        expected = alone(seen, request.n_prompt, request.adapter)
        for detector, value in expected.statistics.items():
            assert value == pytest.approx(summary.statistics[detector], abs=1e-6)
