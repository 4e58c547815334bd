"""Aggregators by themselves; what all share is in tests/contract."""

import numpy as np
import pytest

from probes import EMAMax, Last, Max, Mean, aggregator_from_json

EVIDENCE = np.array([[1.0], [4.0], [-2.0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [(Max(), 4.0), (Mean(), 1.0), (Last(), -2.0), (EMAMax(), 2.25)],
    ids=repr,
)
def test_statistic_by_hand(
    aggregator: Max | Mean | Last | EMAMax, expected: float
) -> None:
    """
    The statistic of three tokens is what the formula gives by hand.
    """
    offsets = np.array([0, 3], dtype=np.int64)

    _, statistic = aggregator.update(aggregator.start(1), EVIDENCE, offsets)

    assert [expected] == statistic.tolist()


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    """
    A moving average that would never move, or overshoot, cannot be built.
    """
    with pytest.raises(ValueError, match="alpha"):
        EMAMax(alpha=alpha)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": "median"},
        {"name": "max", "alpha": 0.5},
        {"name": "ema_max", "alpha": "half"},
        {"name": "ema_max", "alpha": True},
        {"name": "ema_max", "alpha": 2},
    ],
)
def test_unknown_json_is_refused(data: dict[str, object]) -> None:
    """
    An unknown name, key or value is an error, never ignored.
    """
    with pytest.raises(ValueError, match=r"expected|unknown"):
        aggregator_from_json(data)
