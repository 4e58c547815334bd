"""A flag says which layers and features its token's score came from."""

import numpy as np
import pytest

from monitor.core import Monitor
from monitor.history import TokenHistory
from monitor.recent_steps import RecentSteps
from monitor.records import Flag, StepBatch
from probes.aggregate import Aggregator, Max, Mean
from probes.bank import ProjectionBank
from probes.calibration import fixed_thresholds
from probes.contributions import Contribution
from probes.multilayer import MultiLayerProbe
from tests.monitor.builders import (
    D_MODEL,
    EARLY,
    ENGINE,
    LATE,
    Rows,
    batch,
    loud,
    monitor,
)
from tests.monitor.builders import bank as plain_bank


def layers(aggregator: Aggregator) -> MultiLayerProbe:
    """Its evidence is axis 0 early, and minus a third of it late."""
    axis = np.eye(D_MODEL, dtype=np.float32)[0]
    return MultiLayerProbe(
        name="layers",
        hook_points=(EARLY, LATE),
        weights=np.stack([axis, -axis / np.float32(3)]),
        bias=0.0,
        aggregator=aggregator,
    )


def watch(aggregator: Aggregator, max_history_bytes: int = 1 << 20) -> Monitor:
    """A monitor of `layers`."""
    detector = layers(aggregator)
    return Monitor(
        ProjectionBank.compile([detector]),
        [detector],
        fixed_thresholds({"layers": 1.0}),
        max_history_bytes=max_history_bytes,
    )


def step(values: list[float], *, first: int = 0, number: int = 1) -> StepBatch:
    """One request's rows with *values* on axis 0, as whole activations."""
    rows = Rows("a", first, [loud(0, value) for value in values])
    return batch(rows, step=number, holds_activations=True)


def said(flag: Flag) -> list[tuple[str, float, float]]:
    """The contributions of *flag*, rounded."""
    return [(c.name, round(c.value, 3), round(c.share, 3)) for c in flag.contributions]


def test_a_flag_of_several_layers_says_what_each_said() -> None:
    """
    At the flag's token, the largest first, whichever row of the step it was.
    """
    (flag,) = watch(Max()).observe(step([0.0, 9.0, 3.0]))

    assert 1 == flag.position
    assert [(EARLY, 9.0, 0.75), (LATE, -3.0, 0.25)] == said(flag)


def test_a_flag_at_the_end_looks_back() -> None:
    """
    A mean flags when its request ends, and the token may be of an earlier step.
    """
    monitored = watch(Mean())
    monitored.observe(step([0.0, 9.0, 0.0]))
    monitored.observe(step([3.0], first=3, number=2))

    ((flag,), _) = monitored.finish(ENGINE, "a")

    assert 1 == flag.position
    assert [(EARLY, 9.0, 0.75), (LATE, -3.0, 0.25)] == said(flag)


def test_a_step_that_is_too_long_ago_is_not_known() -> None:
    """
    The memory for steps is bounded: the flag is raised all the same.
    """
    monitored = watch(Mean(), max_history_bytes=4_000)
    monitored.observe(step([90.0]))
    for i in range(1, 30):
        monitored.observe(step([6.0] * 4, first=4 * i - 3, number=i + 1))

    ((flag,), _) = monitored.finish(ENGINE, "a")

    assert (0, ()) == (flag.position, flag.contributions)


def test_one_layer_said_it_all() -> None:
    """
    A probe at one layer names it, with the token's score.
    """
    (flag,) = monitor().observe(batch(Rows("a", 0, [loud(0)])))

    assert (Contribution(name=EARLY, value=10.0, share=1.0),) == flag.contributions


def test_columns_from_the_model_say_the_same() -> None:
    """
    Pushed down or projected here: the contributions are equal.
    """
    bank = ProjectionBank.compile([layers(Max())])
    whole = step([0.0, 9.0])
    columns, norms = bank.project(dict(whole.activations))
    pushed = StepBatch(
        **{
            name: getattr(whole, name)
            for name in StepBatch.__dataclass_fields__
            if name not in ("activations", "columns", "squared_norms", "bank_digest")
        },
        activations={},
        columns=columns,
        squared_norms=norms,
        bank_digest=bank.digest,
    )

    (flag,) = watch(Max()).observe(pushed)

    assert [(EARLY, 9.0, 0.75), (LATE, -3.0, 0.25)] == said(flag)


@pytest.mark.parametrize("n_each", [1, 3, 7, 8, 11])
def test_tokens_are_found_by_their_numbers(n_each: int) -> None:
    """
    Whatever the steps' sizes, each token that is kept is in the step it came in.
    """
    history, recent = TokenHistory(1, 8 * 16), RecentSteps(1 << 20)
    step_of: dict[int, tuple[int, int]] = {}
    one = batch(Rows("a", 0, [loud(0)]))
    assert plain_bank().digest == one.bank_digest
    for i in range(12):
        positions = np.arange(n_each) + n_each * i
        scores = np.zeros((n_each, 1), dtype=np.float32)
        number = batch(Rows("a", 0, [loud(0)]), step=i)
        first = history.write(
            np.zeros(n_each, dtype=np.int64),
            positions,
            scores,
            positions.astype(np.int32),
        )
        recent.note(first, number, np.arange(n_each)[::-1].copy())
        step_of |= {int(p): (i, n_each - 1 - j) for j, p in enumerate(positions)}

        kept = history.of(0, n_each * (i + 1))

        assert min(8, n_each * (i + 1)) == len(kept.positions)
        for position in kept.positions.tolist():
            found = recent.find(kept.number_at(position))
            assert found is not None
            assert step_of[position] == (found[0].step, found[1])
    assert -1 == kept.number_at(0)
    assert recent.find(-1) is None
    assert recent.find(1 << 40) is None
