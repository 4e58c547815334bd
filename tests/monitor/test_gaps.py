"""What a sender says is lost is counted once, whatever it repeats."""

from monitor.records import Gap, LossReason, LostRange, Verdict
from tests.monitor.builders import ENGINE, Rows, batch, monitor, quiet


def gap(
    *lost: LostRange,
    first_step: int = 5,
    last_step: int = 5,
    n_tokens: int | None = None,
    finished: tuple[str, ...] = (),
    n_finished: int = 0,
    reason: LossReason = LossReason.BUFFER_FULL,
) -> Gap:
    listed = sum(one.n_tokens for one in lost)
    return Gap(
        engine=ENGINE,
        rank=0,
        reason=reason,
        first_step=first_step,
        last_step=last_step,
        n_tokens=listed if n_tokens is None else n_tokens,
        lost=lost,
        finished=finished,
        n_finished=n_finished,
    )


def lost(request_id: str, first_position: int, n_tokens: int) -> LostRange:
    return LostRange(
        request_id=request_id, first_position=first_position, n_tokens=n_tokens
    )


class TestRecordGap:
    def test_a_gap_advances_positions(self) -> None:
        """
        Tokens in a gap are lost for its reason, and later rows go on behind them.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(2)), step=1))
        watch.record_gap(gap(lost("a", 2, 3)))
        watch.observe(batch(Rows("a", 5, quiet(1)), step=6))

        _, summary = watch.finish(ENGINE, "a")

        assert {LossReason.BUFFER_FULL: 3} == summary.n_tokens_lost
        assert 3 == summary.n_tokens_scored

    def test_what_was_scored_is_not_lost_as_well(self) -> None:
        """
        A gap that covers scored positions counts only those beyond them.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(4)), step=1))

        watch.record_gap(gap(lost("a", 2, 3)))

        assert (5, 4, 1) == (
            watch.totals.tokens.n_expected,
            watch.totals.tokens.n_scored,
            watch.totals.tokens.n_lost_total,
        )

    def test_finishes_requests_whose_end_was_in_it(self) -> None:
        """
        A request of which only gaps were seen ends as UNSCANNED.
        """
        ((flags, summary),) = monitor().record_gap(
            gap(lost("a", 0, 3), finished=("a",))
        )

        assert [] == flags
        assert (Verdict.UNSCANNED, {LossReason.BUFFER_FULL: 3}) == (
            summary.verdict,
            summary.n_tokens_lost,
        )

    def test_counts_tokens_it_does_not_list(self) -> None:
        """
        Tokens of no request are in the total alone.
        """
        watch = monitor()

        watch.record_gap(gap(lost("a", 0, 3), n_tokens=10))

        assert 10 == watch.totals.tokens.n_expected
        assert 3 == watch.coverage(ENGINE, "a").n_expected

    def test_a_hole_that_a_gap_counted_without_a_name_counts_once(self) -> None:
        """
        The totals know the tokens already; the request is partial, named or not.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(4)), Rows("b", 0, quiet(1)), step=1))
        watch.record_gap(gap(n_tokens=4))
        watch.observe(batch(Rows("a", 8, quiet(1)), step=6))

        verdicts = [watch.finish(ENGINE, name)[1].verdict for name in "ab"]

        assert [Verdict.PARTIAL] * 2 == verdicts
        assert (10, 6) == (watch.totals.tokens.n_expected, watch.totals.tokens.n_scored)

    def test_a_gap_sent_again_after_it_grew_counts_the_growth(self) -> None:
        """
        Listed or not, tokens count once, and an ended request does not end twice.
        """
        watch = monitor()
        watch.record_gap(gap(lost("a", 0, 3), n_tokens=10, finished=("a",)))

        again = gap(
            lost("a", 0, 3),
            lost("b", 0, 2),
            n_tokens=14,
            last_step=6,
            finished=("a",),
        )

        assert [] == watch.record_gap(again)
        assert 14 == watch.totals.tokens.n_expected

    def test_ends_that_it_does_not_list_are_unscanned_requests(self) -> None:
        """
        A gap too long to name every request still counts each, and once.
        """
        watch = monitor()
        watch.record_gap(gap(lost("a", 0, 3), n_tokens=9, n_finished=4))
        watch.record_gap(gap(lost("a", 0, 3), n_tokens=9, n_finished=5, last_step=6))

        assert 5 == watch.totals.n_requests[Verdict.UNSCANNED]

    def test_an_acknowledgement_that_was_lost_counts_nothing_twice(self) -> None:
        """
        A gap over steps that were scored and whose requests ended adds nothing.
        """
        watch = monitor()
        watch.observe(batch(Rows("a", 0, quiet(4)), step=5))
        watch.finish(ENGINE, "a")

        finished = watch.record_gap(gap(lost("a", 0, 4), finished=("a",)))

        assert [] == finished
        assert (4, 0) == (
            watch.totals.tokens.n_expected,
            watch.totals.tokens.n_lost_total,
        )
