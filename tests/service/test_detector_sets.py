"""A detector set goes live in three moments, and a refused change changes nothing."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.daemon.detector_sets import (
    MAX_SETS,
    DetectorSet,
    DetectorSets,
    SetState,
    SwapError,
    Taps,
)

HOOK_POINT = "blocks.2.hook_resid_post"
TAPS = (Taps(engine="e", hook_points=frozenset({HOOK_POINT}), k_max=8),)


def made(name: str, n_columns: int = 2) -> DetectorSet:
    """Make a set of *n_columns* columns at one hook point."""
    return DetectorSet(
        name=name,
        digest=f"digest-of-{name}",
        bank_digest=f"bank-of-{name}",
        n_columns={HOOK_POINT: n_columns},
    )


def loaded(*sets: DetectorSet) -> DetectorSets:
    """Return a daemon's sets with "a" live and *sets* loaded."""
    state = DetectorSets.first(made("a"))
    for new in sets:
        state = state.load(new, TAPS)
    return state


def test_a_promotion_keeps_both_sets_until_the_last_old_request_ended() -> None:
    """
    The old set's columns leave the bank when it has retired, not before.
    """
    coming = loaded(made("b")).promote("b", TAPS)
    assert ("a", ("a", "b")) == (coming.live, coming.computed)

    live = coming.arrived()
    assert ("b", ("b", "a")) == (live.live, live.computed)
    assert SetState.RETIRING is live.state_of("a")

    assert ("b",) == live.retired().computed
    assert SetState.PREVIOUS is live.retired().state_of("a")


def test_a_rollback_before_the_old_set_retired_needs_no_new_bank() -> None:
    """
    What the engines compute is the same before it, during it and after it.
    """
    promoted = loaded(made("b")).promote("b", TAPS).arrived()
    going_back = promoted.roll_back(TAPS)

    assert set(promoted.computed) == set(going_back.computed)
    assert "a" == going_back.arrived().live
    assert "b" == going_back.arrived().retiring


def test_a_rollback_withdraws_what_is_still_coming() -> None:
    """
    No request began under it: the live set stays, and the columns are not wanted.
    """
    state = loaded(made("b"))

    assert state == state.promote("b", TAPS).roll_back(TAPS)


def test_a_promoted_shadow_is_no_shadow_any_more() -> None:
    """
    A set is scored once: as the live one or beside it.
    """
    state = loaded(made("b")).start_shadow("b", TAPS)
    assert SetState.SHADOW is state.state_of("b")

    live = state.promote("b", TAPS).arrived()
    assert ("b", "") == (live.live, live.shadow)


def test_a_recalibrated_set_asks_for_no_more_columns() -> None:
    """
    Sets with one bank share its columns: both fit where one does.
    """
    wide = made("wide", 8)
    again = replace(wide, name="again", digest="another")
    state = DetectorSets.first(wide).load(again, TAPS)

    assert ("wide", "again") == state.promote("again", TAPS).computed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.promote("x", TAPS), "'x': no such detector set"),
        (lambda s: s.start_shadow("x", TAPS), "'x': no such detector set"),
        (lambda s: s.promote("a", TAPS), "a: is live already"),
        (lambda s: s.start_shadow("a", TAPS), "expected a loaded set, is live"),
        (lambda s: s.start_shadow("b", TAPS).start_shadow("b", TAPS), "is shadow"),
        (lambda s: s.load(made("b"), TAPS), r"b \(.*: already loaded as b"),
        (
            lambda s: s.load(replace(made("b"), name="z"), TAPS),
            r"z \(.*: already loaded as b",
        ),
        (lambda s: s.load(made("w", 9), TAPS), "at most 8 columns .* got 9"),
        (lambda s: s.promote("wide", TAPS), r"a \+ wide: .*at most 8 .* got 9"),
        (lambda s: s.start_shadow("wide", TAPS), r"a \+ wide: .* got 9"),
        (lambda s: s.promote("b", TAPS).promote("c", TAPS), "to b is under way"),
        (
            lambda s: s.promote("b", TAPS).arrived().promote("c", TAPS),
            "c: requests that began under a still run",
        ),
        (lambda s: s.roll_back(TAPS), "a: no set was live before it"),
        (lambda s: s.unload("a"), "is live"),
        (
            lambda s: (
                s.promote("b", TAPS)
                .arrived()
                .retired()
                .start_shadow("a", TAPS)
                .unload("a")
            ),
            "a: expected a loaded set or the shadow, is previous",
        ),
        (
            lambda s: s.load(
                replace(made("z"), n_columns={"blocks.7.hook_resid_post": 1}), TAPS
            ),
            "z: reads blocks.7",
        ),
        (
            lambda s: loaded(*(made(f"s{i}") for i in range(MAX_SETS))),
            "16 sets are loaded",
        ),
    ],
)
def test_a_change_that_can_not_be_made_is_refused_in_one_line(
    change: object, message: str
) -> None:
    """
    The line names the set, what was expected and what came.
    """
    assert callable(change)
    state = loaded(made("b"), made("c"), made("wide", 7))

    with pytest.raises(SwapError, match=message) as refused:
        change(state)
    assert "\n" not in str(refused.value)


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


class Swaps(RuleBasedStateMachine):
    """
    Changes in any order, with requests that begin and end between them.

    Every request is scored by the set that was live when it began, so that set has to
    be computed until it ends: otherwise it would be lost or scored with a mixture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = DetectorSets.first(made("a"))
        self.requests: list[str] = []

    def attempt(self, change: str, *arguments: object) -> None:
        before = replace(self.state)
        try:
            self.state = getattr(self.state, change)(*arguments)
        except SwapError:
            assert before == self.state

    @rule(name=NAMES, n_columns=st.integers(0, 9))
    def load(self, name: str, n_columns: int) -> None:
        self.attempt("load", made(name, n_columns), TAPS)

    @rule(name=NAMES, change=st.sampled_from(["start_shadow", "promote"]))
    def use(self, name: str, change: str) -> None:
        self.attempt(change, name, TAPS)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.attempt("unload", name)

    @rule()
    def roll_back(self) -> None:
        self.attempt("roll_back", TAPS)

    @rule()
    def arrive(self) -> None:
        self.state = self.state.arrived()

    @rule()
    def begin_request(self) -> None:
        self.requests.append(self.state.live)

    @rule(which=st.integers(0, 99))
    def end_request(self, which: int) -> None:
        if self.requests:
            self.requests.pop(which % len(self.requests))

    @rule()
    def retire(self) -> None:
        if self.state.retiring not in self.requests:
            self.state = self.state.retired()

    @invariant()
    def every_request_keeps_its_columns(self) -> None:
        assert set(self.requests) <= set(self.state.computed)

    @invariant()
    def what_is_computed_is_loaded_and_fits(self) -> None:
        sets = [self.state.sets[name] for name in self.state.computed]
        assert sum(s.n_columns[HOOK_POINT] for s in sets) <= TAPS[0].k_max

    @invariant()
    def every_role_is_a_loaded_set(self) -> None:
        state = self.state
        roles = (state.live, state.shadow, state.coming, state.retiring, state.previous)
        assert {name for name in roles if name} <= state.sets.keys()

    @invariant()
    def a_set_does_one_thing(self) -> None:
        state = self.state
        assert state.live not in ("", state.shadow, state.coming, state.retiring)


Swaps.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
TestSwaps = Swaps.TestCase
