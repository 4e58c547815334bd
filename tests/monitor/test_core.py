"""The monitor flags what crosses, once, and counts what it could not see."""

from dataclasses import replace

import numpy as np
import pytest

from monitor.core import Monitor
from monitor.records import NOT_WRITTEN, LossReason, Verdict
from tests.monitor.builders import (
    ENGINE,
    Rows,
    bank,
    batch,
    calibration,
    detectors,
    loud,
    monitor,
    quiet,
    with_norms,
)


class TestObserve:
    def test_flags_a_request_whose_statistic_crosses(self) -> None:
        """
        A flag names request, detector and position, and has a score a token.
        """
        watch = monitor()

        (flag,) = watch.observe(batch(Rows("a", 0, [*quiet(2), loud(0), *quiet(1)])))

        assert (ENGINE, "a", "max", 10.0, 2.0, 2) == (
            flag.engine,
            flag.request_id,
            flag.detector,
            flag.score,
            flag.threshold,
            flag.position,
        )
        assert [0.5, 0.5, 10.0, 0.5] == flag.scores.tolist()
        assert [100, 101, 102, 103] == flag.token_ids.tolist()
        assert bank().digest == flag.bank_digest

    def test_does_not_flag_at_the_threshold(self) -> None:
        """
        A statistic that equals the threshold is no flag.
        """
        assert [] == monitor().observe(batch(Rows("a", 0, [loud(0, 2.0)])))

    def test_flags_a_request_once_for_each_detector(self) -> None:
        """
        Later crossings of a flagged pair are silent; another detector's are not.
        """
        watch = monitor()

        flags = [
            watch.observe(batch(Rows("a", 0, [loud(0)]), step=1)),
            watch.observe(batch(Rows("a", 1, [loud(0)]), step=2)),
            watch.observe(batch(Rows("a", 2, [loud(1)]), step=3)),
        ]

        assert [["max"], [], ["ema"]] == [[f.detector for f in each] for each in flags]

    def test_tells_requests_of_a_step_apart(self) -> None:
        """
        Only the request with the suspicious row is flagged.
        """
        flags = monitor().observe(
            batch(
                Rows("a", 0, quiet(3)), Rows("b", 7, [loud(0)]), Rows("c", 0, quiet(1))
            )
        )

        assert ["b"] == [flag.request_id for flag in flags]

    def test_activations_give_the_same_flags_as_columns(self) -> None:
        """
        Projecting here or in the model makes no difference.
        """
        rows = (Rows("a", 0, [loud(0)]), Rows("b", 0, [loud(1, 3.0), loud(1, 9.0)]))
        pushed, raw = monitor(), monitor()

        expected = pushed.observe(batch(*rows))
        found = raw.observe(batch(*rows, holds_activations=True))

        assert [(f.request_id, f.detector, f.score) for f in expected] == [
            (f.request_id, f.detector, f.score) for f in found
        ]

    def test_cutting_a_request_into_steps_changes_nothing(self) -> None:
        """
        One step of all rows and a step a row end in the same statistics.
        """
        rng = np.random.default_rng(5)
        values = rng.normal(size=(20, 4)).tolist()
        whole, cut = monitor(), monitor()
        whole.observe(batch(Rows("a", 0, values)))
        for position, value in enumerate(values):
            cut.observe(batch(Rows("a", position, [value]), step=position + 1))

        _, expected = whole.finish(ENGINE, "a")
        _, found = cut.finish(ENGINE, "a")

        assert expected.statistics == pytest.approx(found.statistics)

    def test_rows_computed_again_are_skipped(self) -> None:
        """
        Positions that were scored before a preemption are neither scored nor
        counted again.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(4)), step=1))

        flags = watch.observe(batch(Rows("a", 0, [*[loud(0)] * 4, *quiet(1)]), step=2))

        assert [] == flags
        assert (5, 5, 4) == (
            watch.totals.tokens.n_expected,
            watch.totals.tokens.n_scored,
            watch.totals.n_repeated,
        )

    def test_positions_from_the_prefix_cache_are_lost(self) -> None:
        """
        What was cached never passed the tap: the request is PARTIAL and says why.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 16, quiet(2), n_cached=16)))

        _, summary = watch.finish(ENGINE, "a")

        assert {LossReason.PREFIX_CACHED: 16} == summary.n_tokens_lost
        assert Verdict.PARTIAL is summary.verdict

    def test_rows_that_came_were_not_cached(self) -> None:
        """
        A row that is there is scored, whatever the sender says was cached.
        """
        watch = monitor()

        watch.observe(batch(Rows("a", 2, quiet(3), n_cached=4)))

        assert 3 == watch.coverage(ENGINE, "a").n_scored
        assert {LossReason.PREFIX_CACHED: 2} == (
            watch.coverage(ENGINE, "a").copy_lost()
        )

    def test_positions_nobody_spoke_of_are_not_received(self) -> None:
        """
        A jump in positions counts as lost, and the flag's scores hold NaN there.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(1)), step=1))

        (flag,) = watch.observe(batch(Rows("a", 3, [loud(0)]), step=2))

        assert [False, True, True, False] == np.isnan(flag.scores).tolist()
        assert {LossReason.NOT_RECEIVED: 2} == (watch.coverage(ENGINE, "a").copy_lost())

    @pytest.mark.parametrize(
        ("norm", "reason"),
        [
            (float(NOT_WRITTEN), LossReason.TAP_SILENT),
            (float("nan"), LossReason.NOT_FINITE),
            (float("inf"), LossReason.NOT_FINITE),
        ],
    )
    def test_unreadable_rows_are_lost(self, norm: float, reason: LossReason) -> None:
        """
        A row that one tap did not write, or that is not finite, is scored by no
        detector, and the rows around it are.
        """
        watch = monitor()
        rows = Rows("a", 0, [*quiet(1), loud(0), *quiet(1)])

        flags = watch.observe(with_norms(batch(rows), [1], norm))

        assert [] == flags
        assert {reason: 1} == watch.coverage(ENGINE, "a").copy_lost()
        assert 2 == watch.coverage(ENGINE, "a").n_scored

    def test_non_finite_columns_do_not_poison_later_tokens(self) -> None:
        """
        After a NaN token the request's statistics are those of its other tokens.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, [[np.nan] * 4]), step=1))
        watch.observe(batch(Rows("a", 1, [loud(2, 1.0)]), step=2))

        _, summary = watch.finish(ENGINE, "a")

        assert {"max": 0.0, "ema": 0.0, "mean": 1.0} == summary.statistics

    @pytest.mark.parametrize(
        ("digest", "reason"),
        [("", LossReason.NO_BANK), ("f" * 64, LossReason.REFUSED)],
    )
    def test_columns_of_another_bank_are_lost(
        self, digest: str, reason: LossReason
    ) -> None:
        """
        Columns that this bank did not make are never read as its own.
        """
        watch = monitor()

        flags = watch.observe(
            replace(batch(Rows("a", 0, [loud(0)])), bank_digest=digest)
        )

        assert [] == flags
        assert {reason: 1} == watch.coverage(ENGINE, "a").copy_lost()

    def test_many_requests_at_once(self) -> None:
        """
        More live requests than there were slots for keep their own statistics.
        """
        watch = monitor()
        watch.observe(
            batch(*(Rows(f"r{i}", 0, [loud(2, i / 100)]) for i in range(200)))
        )

        means = [
            watch.finish(ENGINE, f"r{i}")[1].statistics["mean"] for i in range(200)
        ]

        assert [i / 100 for i in range(200)] == pytest.approx(means)


class TestFinish:
    def test_judges_detectors_that_can_fall(self) -> None:
        """
        A mean above the threshold is flagged at the end and not before.
        """
        watch = monitor()
        online = watch.observe(batch(Rows("a", 0, [loud(2), loud(2, 4.0)])))

        flags, summary = watch.finish(ENGINE, "a")

        assert [] == online
        assert [("mean", 7.0)] == [(f.detector, f.score) for f in flags]
        assert ("mean",) == summary.flagged_by
        assert [10.0, 4.0] == summary.scores["mean"].tolist()

    def test_a_request_seen_whole_is_scanned(self) -> None:
        """
        Everything scored is SCANNED, and an unflagged request keeps no tokens.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(3), n_prompt_tokens=2)))

        flags, summary = watch.finish(ENGINE, "a")

        assert [] == flags
        assert Verdict.SCANNED is summary.verdict
        assert (3, 2, {}) == (
            summary.n_tokens_scored,
            summary.n_prompt_tokens,
            summary.n_tokens_lost,
        )
        assert 0 == len(summary.token_ids)

    def test_an_unknown_request_is_unscanned(self) -> None:
        """
        A request nobody mentioned is UNSCANNED with counts of zero.
        """
        watch = monitor()

        flags, summary = watch.finish(ENGINE, "ghost")

        assert ([], Verdict.UNSCANNED, 0, {}) == (
            flags,
            summary.verdict,
            summary.n_tokens_scored,
            summary.n_tokens_lost,
        )

    def test_a_used_slot_starts_afresh(self) -> None:
        """
        A request that takes a finished one's place inherits nothing of it.
        """
        watch = monitor()
        for step in range(1, 200):
            watch.observe(batch(Rows(f"r{step}", 0, [loud(0)]), step=step))
            watch.finish(ENGINE, f"r{step}")

        watch.observe(batch(Rows("new", 0, quiet(1)), step=200))

        assert 0.5 == watch.finish(ENGINE, "new")[1].statistics["max"]


class TestMemory:
    def test_the_oldest_are_evicted(self) -> None:
        """
        Beyond the cap the oldest requests are finished with what was seen.
        """
        watch = monitor(max_live_requests=2)
        watch.observe(batch(*(Rows(name, 0, quiet(1)) for name in "abcd")))

        evicted = [summary.request_id for _, summary in watch.evict()]

        assert ["a", "b"] == evicted
        assert (2, 2) == (watch.n_live_requests, watch.totals.n_evicted)

    def test_an_evicted_request_goes_on_where_it_was(self) -> None:
        """
        Its later rows are scored, and its earlier ones are not counted again.
        """
        watch = monitor(max_live_requests=1)
        watch.observe(batch(Rows("a", 0, quiet(3)), Rows("b", 0, quiet(1)), step=1))
        watch.evict()

        watch.observe(batch(Rows("a", 3, quiet(1)), step=2))

        assert 1 == watch.coverage(ENGINE, "a").n_scored
        assert 0 == watch.totals.tokens.n_lost_total

    def test_a_request_whose_end_nobody_saw_is_partial(self) -> None:
        """
        Scored whole as far as it was seen is not scanned.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(3)), Rows("b", 0, quiet(1)), step=1))

        _, abandoned = watch.abandon(ENGINE, "a")
        ((_, last),) = watch.end_all()

        assert (Verdict.PARTIAL, 3) == (abandoned.verdict, abandoned.n_tokens_scored)
        assert ("b", Verdict.PARTIAL) == (last.request_id, last.verdict)
        assert 0 == watch.n_live_requests

    def test_a_second_life_is_partial_and_not_flagged_again(self) -> None:
        """
        What was abandoned and goes on is never scanned, and its end counts once.
        """
        watch = monitor()
        (first,) = watch.observe(batch(Rows("a", 0, [loud(0)]), step=1))
        watch.abandon(ENGINE, "a")

        again = watch.observe(batch(Rows("a", 1, [loud(0)]), step=2))
        ((late, summary),) = watch.end(ENGINE, ["a"])

        assert ("a", [], []) == (first.request_id, again, late)
        assert (Verdict.PARTIAL, 1) == (summary.verdict, watch.totals.n_flags["max"])

    def test_an_end_after_an_abandonment_is_no_second_request(self) -> None:
        """
        Its end alone, with no token after it, adds nothing.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(1)), step=1))
        watch.abandon(ENGINE, "a")

        assert [] == watch.end(ENGINE, ["a"])
        assert 1 == sum(watch.totals.n_requests.values())

    def test_stale_requests_are_named(self) -> None:
        """
        Only requests that no step has mentioned since are stale.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(1)), Rows("b", 0, quiet(1)), step=1))
        watch.observe(batch(Rows("b", 1, quiet(1)), step=9))

        assert ["a"] == watch.stale(ENGINE, before_step=9)
        assert [] == watch.stale("another", before_step=9)

    def test_a_gone_engine_leaves_nothing(self) -> None:
        """
        Ending an engine finishes its requests and no other's.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(1))))
        watch.observe(batch(Rows("a", 0, quiet(1)), engine="engine-2"))

        ended = [(s.engine, s.request_id) for _, s in watch.end_engine(ENGINE)]

        assert [(ENGINE, "a")] == ended
        assert ["a"] == watch.live("engine-2")


def test_steps_sent_again_are_known() -> None:
    """
    A step at or before the last one is repeated; the next is not.
    """
    watch = monitor()
    watch.observe(batch(Rows("a", 0, quiet(1)), step=7))

    assert watch.is_repeated(ENGINE, 7)
    assert not watch.is_repeated(ENGINE, 8)
    assert not watch.is_repeated("another", 1)


def test_every_detector_needs_a_calibration() -> None:
    """
    A calibration of other detectors is refused when the monitor is built.
    """
    with pytest.raises(ValueError, match="mean"):
        Monitor(bank(), detectors(), calibration(names=["max", "ema"]))
