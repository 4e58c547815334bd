"""What one set said of a token in the prefix cache is never taken for another's."""

from dataclasses import replace

import numpy as np
import pytest

from monitor.core import Monitor
from monitor.records import LossReason, RequestSummary, StepBatch
from tests.monitor.builders import ENGINE, Rows
from tests.monitor.paged_engine import PagedEngine, activation
from tests.monitor.swapping import add, made_with, monitor_of, step_of

SHADOW = 1 << 16
PROMPT = list(range(10))
"""Two blocks that are shared, and two tokens."""


def run(engine: PagedEngine, name: str, n_rows: int, names: str) -> StepBatch:
    """A step of one request, as an engine sends it that computes the sets *names*."""
    made = engine.run((name, n_rows))
    first, tokens = int(made.first_positions[0]), engine.requests[name].tokens
    values = [activation(tokens[: p + 1]) for p in range(first, first + n_rows)]
    prompt = int(made.n_prompt_tokens[0])
    rows = Rows(name, first, values, int(made.n_cached[0]), prompt)
    sent = replace(
        step_of(rows, step=made.step),
        token_ids=made.token_ids,
        slots=made.slots,
        cached=made.cached,
    )
    return made_with(sent, tuple(names))


def finish(watch: Monitor, engine: PagedEngine, name: str) -> RequestSummary:
    engine.release(name)
    return watch.finish(ENGINE, name)[1]


def alone(own: str) -> RequestSummary:
    """What a set says of the prompt when all of it is computed."""
    watch = monitor_of(own)
    values = [activation(PROMPT[: p + 1]) for p in range(len(PROMPT))]
    rows = Rows("x", 0, values, n_prompt_tokens=len(PROMPT))
    watch.observe(made_with(step_of(rows, step=1), (own,)))
    return watch.finish(ENGINE, "x")[1]


def test_the_evidence_of_the_old_set_is_not_the_new_ones() -> None:
    """
    What only the old set has seen is lost to the new one, by name.
    """
    engine, watch = PagedEngine(64), monitor_of("a", max_shadow_bytes=SHADOW)
    add(watch, "b")
    engine.start("old", PROMPT)
    watch.observe(run(engine, "old", 10, "ab"))
    watch.sets.go_live("b")
    engine.start("new", PROMPT)
    watch.observe(run(engine, "new", 2, "ab"))

    summary = finish(watch, engine, "new")

    assert ("b", 0) == (summary.bundle_digest, summary.n_tokens_shadowed)
    assert {LossReason.PREFIX_CACHED: 8} == summary.n_tokens_lost
    assert watch.totals.tokens.is_balanced


@pytest.mark.parametrize("role", ["shadow", "coming"])
def test_a_set_that_was_there_before_it_went_live_has_its_own(role: str) -> None:
    """
    What ran beside the live set, or was on its way, has said something of the tokens
    itself: behind a shared prefix it says what it says of all of them.
    """
    engine, watch = PagedEngine(64), monitor_of("a", max_shadow_bytes=SHADOW)
    add(watch, "b")
    if role == "shadow":
        watch.sets.run_beside("b")
    else:
        watch.sets.expect("b")
    engine.start("old", PROMPT)
    watch.observe(run(engine, "old", 10, "ab"))
    watch.sets.go_live("b")
    for name in ("new", "newer"):
        engine.start(name, PROMPT)
        watch.observe(run(engine, name, 2, "ab"))

    old, new = finish(watch, engine, "old"), finish(watch, engine, "new")

    assert (8, {}) == (new.n_tokens_shadowed, new.n_tokens_lost)
    for summary, own in ((old, "a"), (new, "b")):
        assert own == summary.bundle_digest
        np.testing.assert_allclose(
            list(summary.statistics.values()),
            list(alone(own).statistics.values()),
            rtol=1e-5,
        )


def test_the_shadow_takes_cached_tokens_in_too() -> None:
    """
    Its tally counts a request behind a shared prefix as scored from end to end.
    """
    engine, watch = PagedEngine(64), monitor_of("a", max_shadow_bytes=SHADOW)
    add(watch, "b")
    watch.sets.run_beside("b")
    for name in ("first", "second"):
        engine.start(name, PROMPT)
        n_rows = len(PROMPT) - engine.requests[name].n_computed
        watch.observe(run(engine, name, n_rows, "ab"))
    finish(watch, engine, "first")
    second = finish(watch, engine, "second")

    assert 8 == second.n_tokens_shadowed
    assert 2 == watch.sets.of("b").tally.n_requests
