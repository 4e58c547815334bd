"""The state is decided from what was observed, worst first."""

import pytest

from monitor.coverage import Coverage
from monitor.records import LossReason
from service.daemon.engines import Engines, GoneEngine
from service.daemon.recent import RecentCoverage
from service.daemon.state import Signals, decide

CONNECTED = {"has_ever_connected": True, "n_connected": 1, "silent_seconds": {"e": 1}}


@pytest.mark.parametrize(
    ("signals", "name", "reason"),
    [
        ({}, "waiting", "no engine has connected yet"),
        (CONNECTED, "watching", "every token is scored"),
        (CONNECTED | {"n_connected": 0}, "blind", "no engine is connected"),
        (CONNECTED | {"silent_seconds": {"e": 6.0}}, "blind", "e is silent"),
        (CONNECTED | {"refusal": "d_model"}, "blind", "refused: d_model"),
        ({"refusal": "d_model"}, "blind", "refused: d_model"),
        (CONNECTED | {"failure": "disk full"}, "blind", "disk full"),
        (
            CONNECTED | {"n_lost": {LossReason.TAP_SILENT: 5}},
            "blind",
            "no token is scored: tap_silent",
        ),
        (
            CONNECTED | {"n_lost": {LossReason.TAP_SILENT: 5}, "n_scored": 15},
            "degraded",
            "5 of 20 tokens lost, most: tap_silent",
        ),
        (
            CONNECTED | {"n_lost": {LossReason.PREFIX_CACHED: 5}, "n_scored": 1},
            "watching",
            "",
        ),
        (CONNECTED | {"is_proven": False}, "degraded", "could not prove"),
    ],
)
def test_state(signals: dict[str, object], name: str, reason: str) -> None:
    """
    Each situation has its word, and the reason names what is wrong.
    """
    state = decide(Signals(**signals), blind_after_seconds=5.0)  # type: ignore[arg-type]

    assert name == state.name.value
    assert reason in state.reason


def test_idleness_does_not_heal() -> None:
    """
    The last stretch of traffic stands until there are tokens again.
    """
    recent = RecentCoverage(window_seconds=5.0)
    totals = Coverage()
    recent.sample(0.0, totals)
    totals.n_lost[LossReason.TAP_SILENT] = 3
    recent.sample(1.0, totals)

    recent.sample(1000.0, totals)
    assert {LossReason.TAP_SILENT: 3} == recent.n_lost

    totals.n_scored = 7
    recent.sample(1001.0, totals)
    assert (7, {}) == (recent.n_scored, recent.n_lost)


def test_a_short_burst_of_losses_at_the_end_is_blindness() -> None:
    """
    However samples fall, traffic that ended with nothing but losses is not outweighed
    by what was scored before it.
    """
    recent = RecentCoverage(window_seconds=5.0)
    totals = Coverage()
    totals.n_scored = 1400
    recent.sample(0.0, totals)
    totals.n_lost[LossReason.TAP_SILENT] = 402
    totals.n_scored += 10
    recent.sample(0.25, totals)
    totals.n_lost[LossReason.TAP_SILENT] = 1400
    recent.sample(0.5, totals)
    # Never one within the quarter second in which the window would tell them apart.
    for now in (1.0, 2.0, 3.0, 4.0, 5.0, 5.24, 5.51, 6.0, 60.0):
        recent.sample(now, totals)

    assert (0, {LossReason.TAP_SILENT: 998}) == (recent.n_scored, recent.n_lost)


def test_what_left_the_window_is_forgotten_while_tokens_come() -> None:
    """
    Old losses do not degrade a daemon that has scored everything since.
    """
    recent = RecentCoverage(window_seconds=5.0)
    totals = Coverage()
    totals.n_lost[LossReason.BUFFER_FULL] = 3
    for second in range(20):
        totals.n_scored += 1
        recent.sample(float(second), totals)

    assert {} == recent.n_lost
    assert 5 <= recent.n_scored <= 6


def test_engines_without_a_stream_are_gone_after_their_grace() -> None:
    """
    An engine that comes back in time keeps its place.
    """
    engines = Engines()
    engines.connect("e", 0, 0.0)
    engines.say_goodbye("e", 0)
    engines.disconnect("e", 0, 10.0)

    assert [] == engines.broken_off
    assert [] == engines.take_gone(10.0)
    engines.connect("e", 0, 20.0)
    assert [] == engines.take_gone(100.0)
    assert {"e": 5.0} == engines.silent_seconds(25.0)
    engines.disconnect("e", 0, 30.0)
    assert ["e"] == engines.broken_off
    assert [GoneEngine(name="e", last_heard=30.0, said_goodbye=False)] == (
        engines.take_gone(31.0)
    )
    assert 0 == engines.n_connected


def test_a_stage_that_is_away_is_missed_unless_it_said_goodbye() -> None:
    """
    While one stage of an engine sends, each other has to be there, or to be stopping.
    """
    engines, stages = Engines(), {"e": (0, 1)}
    assert {} == engines.missing(stages)
    engines.connect("e", 0, 0.0)
    assert {"e": [1]} == engines.missing(stages)
    engines.connect("e", 1, 0.0)
    assert {} == engines.missing(stages)

    engines.disconnect("e", 1, 1.0)
    assert {"e": [1]} == engines.missing(stages)
    engines.connect("e", 1, 2.0)
    engines.say_goodbye("e", 1)
    engines.disconnect("e", 1, 3.0)
    assert {} == engines.missing(stages)
    engines.disconnect("e", 0, 4.0)
    assert {} == engines.missing(stages)
