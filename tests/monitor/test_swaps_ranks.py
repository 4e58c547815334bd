"""Ranks of one engine may differ for a step in the bank that they compute."""

from dataclasses import replace

import numpy as np
import pytest

from monitor.core import BatchError, Monitor
from monitor.records import RequestSummary, StepBatch
from monitor.set_scores import only
from tests.monitor.builders import EARLY, LATE, Rows
from tests.monitor.swapping import PAIRS, add, loud, made_with, monitor_of, step_of

WITH_A = [names for names in PAIRS if "a" in names]


def part_of(whole: StepBatch, names: tuple[str, ...], rank: int) -> StepBatch:
    """What the rank of one hook point sends that computes the union of *names*."""
    made = made_with(whole, names)
    place = (EARLY, LATE)[rank]
    return replace(only(made, {place: slice(None)}), rank=rank)


def watch() -> Monitor:
    """A monitor with the set "a" live, and others beside it."""
    made = monitor_of("a")
    for name in ("b", "c"):
        add(made, name)
    return made


def finished(monitor: Monitor, whole: StepBatch) -> RequestSummary:
    """What is said of the one request of *whole*, which ends with it."""
    monitor.observe(whole)
    ((_, summary),) = monitor.end(whole.engine, ["r"])
    return summary


@pytest.mark.parametrize("first", WITH_A)
@pytest.mark.parametrize("second", WITH_A)
def test_a_step_of_two_banks_is_scored_by_the_set_in_both(
    first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    """No token is lost by a swap, and no score has columns of two sets in it."""
    whole = step_of(Rows("r", 0, loud(6, seed=3)), step=1)
    alone = finished(watch(), made_with(whole, ("a",)))
    monitor = watch()

    joined = monitor.sets.join([part_of(whole, first, 0), part_of(whole, second, 1)])
    found = finished(monitor, joined)

    assert 6 == found.n_tokens_scored
    assert alone.bundle_digest == found.bundle_digest == "a"
    for name, statistic in alone.statistics.items():
        assert np.isclose(statistic, found.statistics[name], rtol=1e-5)


def test_a_step_of_banks_with_nothing_in_common_is_refused() -> None:
    """It could be scored by nobody: that is said, and not what is there instead."""
    whole = step_of(Rows("r", 0, loud(2, seed=3)), step=1)
    parts = [part_of(whole, ("a",), 0), part_of(whole, ("b",), 1)]

    with pytest.raises(BatchError, match="expected one bank on all ranks"):
        watch().sets.join(parts)
