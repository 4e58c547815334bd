"""Sets come and go while requests run: each request is one set's, to its end."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from monitor.records import Flag, Gap, LossReason, LostRange, RequestSummary
from tests.monitor.builders import ENGINE, Rows
from tests.monitor.swapping import (
    PAIRS,
    SETS,
    add,
    loud,
    made_with,
    monitor_of,
    step_of,
)


class Traffic(RuleBasedStateMachine):
    """
    Requests in steps of any size, while sets go live, run beside and are taken back.

    The bank that made a step's columns may be any that holds the set of each request
    in it, in any order; steps are lost between them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.monitor = monitor_of("a")
        for name in ("b", "c"):
            add(self.monitor, name)
        self.step = 0
        self.seed = 0
        self.n_begun = 0
        self.requests: dict[str, list[tuple[int, list[list[float]]]]] = {}
        self.next_position: dict[str, int] = {}
        self.began: dict[str, str] = {}
        self.flags: dict[str, list[Flag]] = {}

    @rule(name=st.sampled_from("abc"))
    def go_live(self, name: str) -> None:
        self.monitor.sets.go_live(name)

    @rule(name=st.sampled_from(["", "a", "b", "c"]))
    def run_beside(self, name: str) -> None:
        if name != self.monitor.sets.now.digest:
            self.monitor.sets.run_beside(name)

    @initialize(n=st.integers(1, 6))
    def begin_some(self, n: int) -> None:
        self.begin(n)

    @rule(n=st.integers(1, 3))
    def begin(self, n: int) -> None:
        for _ in range(n):
            self.n_begun += 1
            name = f"r{self.n_begun}"
            self.requests[name], self.next_position[name] = [], 0
            self.flags[name] = []

    @rule(
        n_rows=st.lists(st.integers(0, 6), min_size=1, max_size=4),
        which=st.integers(0, len(PAIRS)),
        is_lost=st.sampled_from([False, False, False, True]),
        is_counted=st.booleans(),
    )
    def run_step(
        self, n_rows: list[int], which: int, is_lost: bool, is_counted: bool
    ) -> None:
        self.step += 1
        going = dict(zip(self.requests, n_rows, strict=False))
        rows = []
        for name, n in going.items():
            self.seed += 1
            rows.append(Rows(name, self.next_position[name], loud(n, self.seed)))
        for one in rows:
            self.next_position[one.request_id] += len(one.values)
        if is_lost:
            self.lose(rows, is_counted)
            return
        sent = step_of(*rows, step=self.step)
        live = self.monitor.sets.now.digest
        needed = {self.began.get(n, live) for n, k in going.items() if k}
        fitting = [names for names in PAIRS if needed <= set(names)]
        if which < len(fitting):
            sent = made_with(sent, fitting[which])
        for one in rows:
            if one.values:
                self.began.setdefault(one.request_id, live)
                self.requests[one.request_id].append((one.first_position, one.values))
        for flag in self.monitor.observe(self.monitor.sets.cut(sent)):
            self.flags[flag.request_id].append(flag)

    def lose(self, rows: list[Rows], is_counted: bool) -> None:
        """Lose a step: its sender counts it, or nobody does."""
        if is_counted:
            lost = tuple(
                LostRange(
                    request_id=one.request_id,
                    first_position=one.first_position,
                    n_tokens=len(one.values),
                )
                for one in rows
            )
            gap = Gap(
                engine=ENGINE,
                rank=0,
                reason=LossReason.BUFFER_FULL,
                first_step=self.step,
                last_step=self.step,
                n_tokens=sum(one.n_tokens for one in lost),
                lost=lost,
            )
            self.monitor.record_gap(gap)

    @rule(which=st.integers(0, 99))
    def finish(self, which: int) -> None:
        if not self.requests:
            return
        self.end(list(self.requests)[which % len(self.requests)])

    def end(self, name: str) -> None:
        flags, summary = self.monitor.finish(ENGINE, name)
        self.check(name, [*self.flags.pop(name), *flags], summary)

    def teardown(self) -> None:
        for name in list(self.requests):
            self.end(name)

    def check(self, name: str, flags: list[Flag], summary: RequestSummary) -> None:
        """What was said is what the request's set alone says of it."""
        pieces, end = self.requests.pop(name), self.next_position.pop(name)
        if name not in self.began:
            return
        own = self.began.pop(name)
        assert own == summary.bundle_digest
        alone = monitor_of(own)
        expected = []
        for i, (first, values) in enumerate(pieces, start=1):
            sent = made_with(step_of(Rows(name, first, values), step=i), (own,))
            expected += alone.observe(sent)
        last, offline = alone.finish(ENGINE, name)
        expected += last
        assert {f.detector: f.position for f in expected} == {
            f.detector: f.position for f in flags
        }
        assert {own} == {f.bundle_digest for f in flags} | {own}
        assert offline.statistics.keys() == summary.statistics.keys()
        np.testing.assert_allclose(
            list(summary.statistics.values()),
            list(offline.statistics.values()),
            rtol=1e-5,
            atol=1e-6,
        )
        n_scored = sum(len(values) for _, values in pieces)
        assert n_scored == summary.n_tokens_scored
        assert summary.n_tokens_scored + sum(summary.n_tokens_lost.values()) <= end

    @invariant()
    def every_token_is_counted_once(self) -> None:
        assert self.monitor.totals.tokens.is_balanced

    @invariant()
    def every_live_request_is_one_sets(self) -> None:
        sets = self.monitor.sets
        n_each = sum(sets.of(name).n_requests for name in SETS)
        assert self.monitor.n_live_requests == n_each


Traffic.TestCase.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, derandomize=True
)
TestTraffic = Traffic.TestCase


def test_a_swap_leaves_what_runs_to_its_set() -> None:
    """
    Two requests in one step, one of the old set and one of the new: each is its own.
    """
    monitor = monitor_of("a")
    add(monitor, "b")
    both = ("a", "b")
    first = step_of(Rows("old", 0, [[9.0, 0, 0, 0]]), step=1)
    (flag,) = monitor.observe(made_with(first, ("a",)))
    monitor.sets.go_live("b")

    rows = [[0.0, 0, 0, 9.0]]
    second = step_of(Rows("old", 1, rows), Rows("new", 0, rows), step=2)
    (later,) = monitor.observe(made_with(second, both))

    assert ("old", "max", "a") == (flag.request_id, flag.detector, flag.bundle_digest)
    assert ("new", "max", "b") == (
        later.request_id,
        later.detector,
        later.bundle_digest,
    )
    monitor.sets.keep({"b"})
    assert 2 == monitor.finish(ENGINE, "old")[1].n_tokens_scored
    monitor.finish(ENGINE, "new")
    monitor.sets.keep({"b"})
    assert not monitor.sets.knows("a")


def test_rows_of_an_older_bank_are_the_older_sets() -> None:
    """
    An engine that was away during a swap loses nothing: its requests are of the set
    that its bank was for, though they are first seen after the swap.
    """
    monitor = monitor_of("a")
    add(monitor, "b")
    monitor.sets.go_live("b")
    gap = Gap(
        engine=ENGINE,
        rank=0,
        reason=LossReason.DISCONNECTED,
        first_step=1,
        last_step=1,
        n_tokens=2,
        lost=(LostRange(request_id="late", first_position=0, n_tokens=2),),
    )
    monitor.record_gap(gap)

    sent = step_of(Rows("late", 2, [[0.5] * 4]), Rows("too", 0, [[0.5] * 4]), step=2)
    monitor.observe(made_with(sent, ("a",)))

    for name, n_lost in (("late", 2), ("too", 0)):
        _, summary = monitor.finish(ENGINE, name)
        assert "a" == summary.bundle_digest
        assert (1, n_lost) == (
            summary.n_tokens_scored,
            sum(summary.n_tokens_lost.values()),
        )
    assert 0 == monitor.sets.of("a").n_requests


def test_what_another_set_takes_over_it_remembers() -> None:
    """
    A request of which nothing was scored before a swap is the new set's, and its flag
    and its end show the tokens that the new set saw, however many the old one had seen.
    """
    monitor = monitor_of("a")
    add(monitor, "b")
    busy = step_of(Rows("busy", 0, [[0.5, 0, 0, 0]] * 20), step=1)
    monitor.observe(made_with(busy, ("a",)))
    gap = Gap(
        engine=ENGINE,
        rank=0,
        reason=LossReason.TAP_SILENT,
        first_step=2,
        last_step=2,
        n_tokens=2,
        lost=(LostRange(request_id="late", first_position=0, n_tokens=2),),
    )
    monitor.record_gap(gap)
    monitor.sets.go_live("b")

    rows = [[0.0, 0, 0, 0.5], [0.0, 0, 0, 9.0]]
    sent = step_of(Rows("late", 2, rows), step=3)
    (flag,) = monitor.observe(made_with(sent, ("b",)))
    _, summary = monitor.finish(ENGINE, "late")

    assert ("late", "b", 3) == (flag.request_id, flag.bundle_digest, flag.position)
    assert [-1, -1, *sent.token_ids.tolist()] == flag.token_ids.tolist()
    assert [False, False, True, True] == np.isfinite(flag.scores).tolist()
    assert flag.token_ids.tolist() == summary.token_ids.tolist()
    np.testing.assert_array_equal(flag.scores, summary.scores[flag.detector])


@pytest.mark.parametrize(
    ("digest", "reason"),
    [("another", LossReason.REFUSED), ("", LossReason.NO_BANK)],
)
def test_rows_of_an_unknown_bank_are_lost(digest: str, reason: LossReason) -> None:
    """
    What made the columns nobody knows: they are counted, and no set sees them.
    """
    monitor = monitor_of("a")
    sent = made_with(step_of(Rows("x", 0, [[9.0] * 4] * 3), step=1), ("c", "a", "b"))

    flags = monitor.observe(monitor.sets.cut(replace(sent, bank_digest=digest)))

    assert [] == flags
    _, summary = monitor.finish(ENGINE, "x")
    assert (0, {reason: 3}) == (summary.n_tokens_scored, summary.n_tokens_lost)


def test_columns_of_a_bank_without_the_requests_set_are_lost() -> None:
    """
    A set's request is never scored with another set's columns: its rows are lost.
    """
    monitor = monitor_of("a")
    add(monitor, "b")
    monitor.observe(made_with(step_of(Rows("x", 0, [[0.5] * 4]), step=1), ("a",)))
    monitor.sets.go_live("b")

    monitor.observe(made_with(step_of(Rows("x", 1, [[9.0] * 4]), step=2), ("b", "c")))

    _, summary = monitor.finish(ENGINE, "x")
    assert (1, {LossReason.REFUSED: 1}) == (
        summary.n_tokens_scored,
        summary.n_tokens_lost,
    )
    assert () == summary.flagged_by


class TestShadow:
    def test_it_raises_nothing_and_tallies_what_it_would_have(self) -> None:
        """
        Its tally is what it says once live; the live set's flags are as without it.
        """
        alone, watched, later = monitor_of("a"), monitor_of("a"), monitor_of("b")
        add(watched, "b")
        watched.sets.run_beside("b")
        n_flagged = n_both = n_flags = 0
        for i in range(1, 40):
            rows = Rows(f"r{i}", 0, loud(5, i))
            sent = made_with(step_of(rows, step=i), ("a", "b"))
            flags = watched.observe(sent)
            own = made_with(step_of(rows, step=i), ("a",))
            assert [f.detector for f in alone.observe(own)] == [
                f.detector for f in flags
            ]
            later.observe(made_with(step_of(rows, step=i), ("b",)))
            _, summary = watched.finish(ENGINE, rows.request_id)
            _, without = alone.finish(ENGINE, rows.request_id)
            _, expected = later.finish(ENGINE, rows.request_id)
            assert without.flagged_by == summary.flagged_by
            n_flagged += bool(expected.flagged_by)
            n_flags += len(expected.flagged_by)
            n_both += bool(summary.flagged_by)

        tally = watched.sets.of("b").tally
        assert 0 < n_flagged < 39
        assert (39, n_flagged, n_both) == (
            tally.n_requests,
            tally.n_requests_flagged,
            tally.n_flagged_live,
        )
        assert n_flags == sum(tally.n_flags.values())
        assert watched.totals.n_flags == alone.totals.n_flags

    def test_it_scores_a_request_whole_or_not_at_all(self) -> None:
        """
        Requests that began before it, or of which it misses a token, it leaves out.
        """
        monitor = monitor_of("a")
        add(monitor, "b")
        monitor.observe(
            made_with(step_of(Rows("early", 0, loud(2, 1)), step=1), ("a",))
        )
        monitor.sets.run_beside("b")
        torn = step_of(
            Rows("early", 2, loud(2, 2)), Rows("torn", 0, loud(2, 3)), step=2
        )
        monitor.observe(made_with(torn, ("a", "b")))
        monitor.observe(made_with(step_of(Rows("torn", 2, loud(1, 4)), step=3), ("a",)))
        whole = step_of(
            Rows("torn", 3, loud(1, 5)), Rows("whole", 0, loud(1, 6)), step=4
        )
        monitor.observe(made_with(whole, ("a", "b")))

        for name in ("early", "torn", "whole"):
            monitor.finish(ENGINE, name)

        assert 1 == monitor.sets.of("b").tally.n_requests

    def test_promoted_it_goes_on_from_nothing_it_saw(self) -> None:
        """
        What it remembers of requests that run is forgotten; they stay the old set's.
        """
        monitor = monitor_of("a")
        add(monitor, "b")
        monitor.sets.run_beside("b")
        sent = step_of(Rows("x", 0, loud(2, 1)), step=1)
        monitor.observe(made_with(sent, ("a", "b")))
        monitor.sets.go_live("b")
        sent = step_of(Rows("x", 2, loud(2, 2)), Rows("y", 0, loud(2, 3)), step=2)
        monitor.observe(made_with(sent, ("a", "b")))

        assert "a" == monitor.finish(ENGINE, "x")[1].bundle_digest
        assert "b" == monitor.finish(ENGINE, "y")[1].bundle_digest
        assert 0 == monitor.sets.of("b").tally.n_requests
