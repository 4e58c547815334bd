"""The benchmark of a push, in short: times are printed, that nothing waits is held."""

import pytest

from tests.bench.push import STATES, measure


@pytest.mark.parametrize("state", STATES)
def test_no_push_waits_for_the_daemon(state: str) -> None:
    """
    Healthy, stopped, killed, out of disk or slow: half of the pushes take less than
    5 ms, where one that waited for an answer would take for ever.
    """
    times = measure("ring", (16, 16), state, 60, 0.002)

    assert times.p50 < 0.005
    assert times.p50 <= times.p99 <= times.longest
