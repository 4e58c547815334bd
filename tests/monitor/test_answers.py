"""A detector that watches answers ignores the prompt, and is never led astray by it."""

from dataclasses import replace

import numpy as np
import pytest

from monitor.core import Monitor
from monitor.records import Flag
from probes.aggregate import Aggregator, EMAMax, Max, Mean
from probes.bank import ProjectionBank
from tests.monitor.builders import (
    EARLY,
    ENGINE,
    Rows,
    batch,
    calibration,
    loud,
    probe,
    quiet,
)


def watching(**aggregators: Aggregator) -> Monitor:
    """Return a monitor with a probe of the same direction for each aggregator."""
    probes = [probe(name, EARLY, 0, kept) for name, kept in aggregators.items()]
    return Monitor(
        ProjectionBank.compile(probes),
        probes,
        calibration(names=[d.name for d in probes]),
    )


def observe(watch: Monitor, *steps: Rows) -> list[Flag]:
    """Let *watch* see activations of EARLY alone, a batch for each of *steps*."""
    flags = []
    for step, rows in enumerate(steps, start=1):
        made = batch(rows, step=step, holds_activations=True)
        flags += watch.observe(
            replace(
                made,
                bank_digest="",
                activations={EARLY: made.activations[EARLY]},
                squared_norms={EARLY: made.squared_norms[EARLY]},
            )
        )
    return flags


def test_only_the_answer_counts_for_a_detector_that_asks_so() -> None:
    """
    Prompt tokens before the last neither flag nor move its statistic, however
    the request is cut; what flags is at the position where it was seen.
    """
    watch = watching(
        answer=Max(tokens="answer"), ema=EMAMax(tokens="answer"), all=Max()
    )
    prompt = [loud(0, 20.0), *quiet(2)]

    flags = observe(
        watch,
        Rows("a", 0, prompt[:2], n_prompt_tokens=3),
        Rows("a", 2, prompt[2:], n_prompt_tokens=3),
        Rows("a", 3, [*quiet(1), loud(0)], n_prompt_tokens=3),
    )
    _, summary = watch.finish(ENGINE, "a")

    assert [("all", 0), ("answer", 4), ("ema", 4)] == [
        (flag.detector, flag.position) for flag in flags
    ]
    assert {"answer": 10.0, "ema": 5.1875, "all": 20.0} == summary.statistics


@pytest.mark.parametrize(
    "later",
    [
        Rows("a", 1, quiet(1), n_prompt_tokens=1000),
        Rows("a", 1, [*quiet(1), loud(0, np.nan)], n_prompt_tokens=3),
    ],
    ids=["beyond every row", "to where nothing was scored"],
)
def test_a_prompt_that_grows_is_judged_all_the_same(later: Rows) -> None:
    """
    A sender that changes its mind on a prompt's length gets its flag where it was.
    """
    watch = watching(mean=Mean(tokens="answer"))

    observe(watch, Rows("a", 0, [loud(0)], n_prompt_tokens=1), later)
    (flag,), _ = watch.finish(ENGINE, "a")

    assert ("mean", 0) == (flag.detector, flag.position)
