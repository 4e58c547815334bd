"""What several ranks of one engine tell is joined step by step."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from monitor.core import BatchError
from monitor.losses import gap_of_batch, joined_gap
from monitor.ranks import Group, RankJoin, Told, joined
from monitor.records import MISATTRIBUTED, Gap, LossReason, LostRange, StepBatch
from monitor.set_scores import only
from tests.monitor.builders import EARLY, ENGINE, LATE, Rows, batch, quiet

PLACES = (EARLY, LATE)


def part(rank: int, step: int, *, request: str = "r", first: int = 0) -> StepBatch:
    """One row, as the rank that owns one of the two hook points sends it."""
    whole = batch(Rows(request, first, quiet(1)), step=step)
    own = {PLACES[rank]: slice(0, whole.columns[PLACES[rank]].shape[1])}
    return replace(only(whole, own), rank=rank)


def gap(rank: int, first: int, last: int, *lost: LostRange) -> Gap:
    """A gap over steps, of which *lost* are named."""
    return Gap(
        engine=ENGINE,
        rank=rank,
        reason=LossReason.BUFFER_FULL,
        first_step=first,
        last_step=last,
        n_tokens=sum(one.n_tokens for one in lost),
        lost=lost,
    )


def put(join: RankJoin[str], rank: int, record: StepBatch | Gap) -> None:
    """Tell *record*, which carries its rank."""
    join.put(rank, Told(record=record, carried=[str(rank)]))


def steps(groups: Iterable[Group[str]]) -> list[tuple[int, int, bool]]:
    """First and last step of each group, and whether it is whole."""
    return [
        (
            min(told.first_step for told in group.told),
            max(told.last_step for told in group.told),
            group.is_whole,
        )
        for group in groups
    ]


def test_a_step_waits_for_every_rank() -> None:
    """Steps come out in order, each when the last rank has told of it."""
    join: RankJoin[str] = RankJoin((0, 1))
    for step in (1, 2, 3):
        put(join, 0, part(0, step))

    assert [] == list(join.ready())
    assert 3 == join.n_waiting
    put(join, 1, part(1, 1))
    put(join, 1, part(1, 2))
    assert [(1, 1, True), (2, 2, True)] == steps(join.ready())
    assert 1 == join.n_waiting


def test_a_gap_is_lost_as_soon_as_all_have_told_of_its_beginning() -> None:
    """
    It waits for nobody to come to its end: a rank whose parts are not answered sends
    no more. A gap that reaches beyond another comes out behind it.
    """
    join: RankJoin[str] = RankJoin((0, 1))
    put(join, 0, part(0, 1))
    put(join, 0, gap(0, 2, 600))
    put(join, 0, part(0, 601))
    put(join, 1, part(1, 1))
    assert [(1, 1, True)] == steps(join.ready())
    assert 2 == join.n_waiting

    put(join, 1, part(1, 2))
    assert [(2, 600, False)] == steps(join.ready())
    put(join, 1, gap(1, 599, 601))
    assert [(599, 601, False)] == steps(join.ready())
    assert 0 == join.n_waiting


def test_a_step_that_a_rank_passed_over_is_lost() -> None:
    """A rank that tells of a later step will not tell of the one before."""
    join: RankJoin[str] = RankJoin((0, 1))
    put(join, 0, part(0, 1))
    put(join, 0, part(0, 2))
    put(join, 1, part(1, 2))

    assert [(1, 1, False), (2, 2, True)] == steps(join.ready())


def test_what_is_given_up_comes_out_as_lost() -> None:
    """A rank that stays away is waited for until its caller says so."""
    join: RankJoin[str] = RankJoin((0, 1))
    for step in range(1, 11):
        put(join, 0, part(0, step))

    assert [] == list(join.ready())
    assert [(step, step, False) for step in range(1, 11)] == steps(join.flush())
    assert 0 == join.n_waiting


def test_what_is_told_twice_is_kept_once() -> None:
    """After a reconnect the longer gap is kept, and both messages are answered."""
    join: RankJoin[str] = RankJoin((0, 1))
    put(join, 0, gap(0, 1, 1))
    put(join, 0, gap(0, 1, 2))
    put(join, 1, part(1, 1))

    (group,) = join.ready()

    assert [2, 1] == [told.last_step for told in group.told]
    assert [["0", "0"], ["1"]] == [told.carried for told in group.told]


def test_what_comes_late_is_put_in_its_place() -> None:
    """What an earlier connection still brings does not make steps come out of order."""
    join: RankJoin[str] = RankJoin((0, 1))
    for step in (2, 3, 1):
        put(join, 0, part(0, step))
    for step in (1, 2, 3):
        put(join, 1, part(1, step))

    assert [(1, 1, True), (2, 2, True), (3, 3, True)] == steps(join.ready())


def test_an_unknown_rank_is_refused() -> None:
    """A rank that no Hello named can not make a step wait."""
    with pytest.raises(BatchError, match=r"expected one of \(0, 1\), got 7"):
        put(RankJoin((0, 1)), 7, part(0, 1))


def test_joined_is_what_one_rank_would_have_sent() -> None:
    """Hook points of all ranks, and what only one of them knows."""
    slots = np.array([9], dtype=np.int32)
    parts = [part(0, 4), replace(part(1, 4), slots=slots, n_positions={"q": 3})]
    whole = batch(Rows("r", 0, quiet(1)), step=4)

    found = joined(parts)

    for hook_point in PLACES:
        np.testing.assert_array_equal(
            found.columns[hook_point], whole.columns[hook_point]
        )
        np.testing.assert_array_equal(
            found.squared_norms[hook_point], whole.squared_norms[hook_point]
        )
    assert slots is found.slots
    assert {"q": 3} == found.n_positions


def test_a_row_of_another_token_is_misattributed() -> None:
    """Ranks that are a step apart in one request are found by their tokens."""
    other = replace(part(1, 4), token_ids=np.array([7], dtype=np.int32))

    found = joined([part(0, 4), other])

    assert [MISATTRIBUTED] == found.squared_norms[EARLY].tolist()
    assert [MISATTRIBUTED] == found.squared_norms[LATE].tolist()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (part(1, 4, request="q"), "have other rows"),
        (part(1, 4, first=1), "have other rows"),
        (replace(part(1, 4), bank_digest="b"), "expected one bank"),
        (part(0, 4), "two ranks sent"),
    ],
)
def test_what_does_not_fit_together_is_refused(other: StepBatch, message: str) -> None:
    """No row is scored with columns of another row, or of another bank."""
    with pytest.raises(BatchError, match=message):
        joined([part(0, 4), other])


def test_joined_gap_counts_what_any_rank_lost_once() -> None:
    """The same range named twice is one; without a gap, the rows that came are lost."""
    lost = LostRange(request_id="r", first_position=3, n_tokens=2)
    more = LostRange(request_id="r", first_position=5, n_tokens=1)

    ends = replace(part(1, 2), finished=("q",))

    found = joined_gap([gap(0, 2, 3, lost), ends, gap(1, 3, 4, lost, more)])
    silent = joined_gap([part(0, 2, first=3)])

    assert (2, 4, 3) == (found.first_step, found.last_step, found.n_tokens)
    assert (lost, more) == found.lost
    assert ("q",) == found.finished
    assert LossReason.NOT_RECEIVED is silent.reason
    assert (replace(lost, n_tokens=1),) == silent.lost


def test_drafts_are_not_lost() -> None:
    """A draft is no token until it is kept: the next step tells of the hole then."""
    drafting = replace(
        batch(Rows("r", 5, quiet(4))), n_drafts=np.array([3], dtype=np.int64)
    )

    found = gap_of_batch(drafting, LossReason.REFUSED)

    assert 1 == found.n_tokens
    assert (LostRange(request_id="r", first_position=5, n_tokens=1),) == found.lost


def test_what_no_rank_named_is_the_most_that_one_counted() -> None:
    """Gaps of one rank add up; ranks count the same tokens."""
    unnamed = [
        replace(gap(rank, first, last), n_tokens=n)
        for rank, first, last, n in [(0, 1, 2, 7), (0, 3, 4, 4), (1, 1, 4, 9)]
    ]

    assert 11 == joined_gap(unnamed).n_tokens
