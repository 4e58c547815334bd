"""A daemon joins what the pipeline stages of one engine send."""

from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest

from monitor.records import StepBatch
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import EARLY, LATE, Rows, batch, loud, quiet
from tests.monitor.test_ranks import PLACES
from tests.service.builders import Client, Place, RunningDaemon, eventually, hello
from tests.service.messages import batch_to_proto

STAGES = (0, 1)
REFUSED = "innerwatch_batches_refused_total"


@pytest.fixture
def stages(
    daemon: RunningDaemon, request: pytest.FixtureRequest
) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Client(daemon.place.address, engine=request.node.name, rank=rank)
            )
            for rank in STAGES
        ]


def say_hello(stage: Client) -> None:
    """Say that this stage owns one of the two hook points."""
    stage.hello(ranks=STAGES, rank_hook_points=[PLACES[stage.rank]])


def part_of(whole: StepBatch, rank: int) -> pb.StepBatch:
    """What the stage *rank* sends of a step."""
    message = batch_to_proto(whole)
    own = [rows for rows in message.hook_points if rows.hook_point == PLACES[rank]]
    del message.hook_points[:]
    message.hook_points.extend(own)
    return message


def test_a_step_is_scored_when_both_stages_have_sent_it(
    daemon: RunningDaemon, stages: list[Client]
) -> None:
    """
    The first to send gets its acknowledgement with the second, when the flags of
    detectors on both stages are in the record.
    """
    early, late = stages
    say_hello(early)
    say_hello(late)
    whole = batch(
        Rows("two", 0, [loud(0), loud(2)]),
        engine=early.engine,
        finished=("two",),
    )
    n_before = daemon.metric("innerwatch_tokens_scored_total")

    early.send(part_of(whole, 0))
    assert 1 == late.ask(part_of(whole, 1)).acknowledged_step
    assert 1 == early.answer().acknowledged_step

    flags = early.audit.ListFlags(pb.ListFlagsRequest(request_id="two")).flags
    assert {"max", "mean"} == {flag.detector for flag in flags}
    assert n_before + 2 == daemon.metric("innerwatch_tokens_scored_total")


def test_what_one_stage_lost_is_lost(
    daemon: RunningDaemon, stages: list[Client]
) -> None:
    """Rows of one stage alone are scored by nobody, and counted once, by the reason."""
    early, late = stages
    say_hello(early)
    say_hello(late)
    whole = batch(Rows("half", 0, quiet(3)), engine=early.engine)
    lost = 'innerwatch_tokens_lost_total{reason="buffer_full"}'
    n_before = daemon.metric(lost)

    early.send(part_of(whole, 0))
    answer = late.ask(
        pb.Gap(
            reason=pb.LOSS_REASON_BUFFER_FULL,
            first_step=1,
            last_step=1,
            n_tokens=3,
            lost=[pb.LostRange(request_id="half", first_position=0, n_tokens=3)],
        )
    )

    assert (1, "") == (answer.acknowledged_step, answer.refusal)
    assert (1, "") == (early.answer().acknowledged_step, "")
    assert n_before + 3 == daemon.metric(lost)


def test_stages_that_do_not_fit_are_refused(stages: list[Client]) -> None:
    """A step of other rows is refused on both streams, which go on."""
    early, late = stages
    say_hello(early)
    say_hello(late)
    early.send(part_of(batch(Rows("a", 0, quiet(1)), engine=early.engine), 0))

    other = late.ask(part_of(batch(Rows("b", 0, quiet(1)), engine=early.engine), 1))

    assert "have other rows" in other.refusal
    assert "have other rows" in early.answer().refusal
    again = batch(Rows("a", 1, quiet(1)), engine=early.engine, step=2)
    early.send(part_of(again, 0))
    assert "" == late.ask(part_of(again, 1)).refusal


def test_a_stage_may_send_its_own_hook_points_only(stages: list[Client]) -> None:
    """Rows of another stage's hook point are refused."""
    early, late = stages
    say_hello(early)
    say_hello(late)
    whole = batch(Rows("a", 0, quiet(1)), engine=early.engine)
    early.send(part_of(whole, 1))

    assert (
        f"expected ['{EARLY}'], got ['{LATE}']"
        in late.ask(part_of(whole, 1)).refusal + early.answer().refusal
    )


def test_a_stage_that_stays_away_blinds(own_daemon: RunningDaemon) -> None:
    """One of two stages is not enough, and the state says which is missing."""
    address = own_daemon.place.address
    with Client(address, rank=0) as early, Client(address, rank=1) as late:
        say_hello(early)
        early.ask(pb.Heartbeat(is_proven=True))
        eventually(lambda: own_daemon.state() == "blind", "blind")
        assert "without its pipeline stage 1" in own_daemon.get("healthz")

        say_hello(late)
        late.ask(pb.Heartbeat(is_proven=True))
        eventually(lambda: own_daemon.state() == "watching", "watching")


def test_answers_come_in_the_order_of_the_messages(
    daemon: RunningDaemon, stages: list[Client]
) -> None:
    """
    A heartbeat behind a step that waits is answered behind it: the sender counts
    answers, and must not take that one for the step's.
    """
    early, late = stages
    n_before = daemon.metric(REFUSED)
    say_hello(early)
    say_hello(late)
    for step in (1, 2):
        whole = batch(Rows("r", step - 1, quiet(1)), engine=early.engine, step=step)
        early.send(part_of(whole, 0))
        early.send(pb.Heartbeat(is_proven=True))
    early.send(pb.StepBatch(step=1 << 60))
    eventually(lambda: daemon.metric(REFUSED) > n_before, "it waits behind both")

    answers = []
    for step in (1, 2):
        whole = batch(Rows("r", step - 1, quiet(1)), engine=early.engine, step=step)
        late.ask(part_of(whole, 1))
        answers += [early.answer(), early.answer()]
    answers.append(early.answer())

    assert [1, 1, 2, 2, 2] == [answer.acknowledged_step for answer in answers]
    assert not any(answer.refusal for answer in answers)


def test_what_waits_for_a_stage_that_is_silent_blinds_and_is_lost(where: Place) -> None:
    """A stage that is connected and tells of no step is waited for so long."""
    where.configure(ingest="reconnect_grace_seconds = 2\nblind_after_seconds = 0.5")
    lost = 'innerwatch_tokens_lost_total{reason="not_received"}'
    with (
        RunningDaemon(where) as daemon,
        Client(where.address, rank=0) as early,
        Client(where.address, rank=1) as late,
    ):
        say_hello(early)
        say_hello(late)
        early.send(part_of(batch(Rows("half", 0, quiet(3))), 0))

        def is_blind() -> bool:
            early.send(pb.Heartbeat(is_proven=True))
            late.send(pb.Heartbeat(is_proven=True))
            return "a pipeline stage tells nothing" in daemon.get("healthz")

        eventually(is_blind, "blind")
        eventually(lambda: daemon.metric(lost) == 3, "what waited is lost")


def test_what_waits_for_a_stage_that_is_gone_is_lost(where: Place) -> None:
    """When the engine has gone, rows that only one stage sent are counted."""
    where.configure(ingest="reconnect_grace_seconds = 1")
    lost = 'innerwatch_tokens_lost_total{reason="not_received"}'
    waiting = "innerwatch_ingest_queue_batches"
    with RunningDaemon(where) as daemon:
        with (
            Client(where.address, rank=0) as early,
            Client(where.address, rank=1) as late,
        ):
            say_hello(early)
            say_hello(late)
            late.ask(pb.Heartbeat(is_proven=True))
            whole = batch(Rows("half", 0, quiet(3)), engine=early.engine)
            early.send(part_of(whole, 0))
            eventually(
                lambda: daemon.metric(waiting) == 1,
                "it waits",
            )
        eventually(lambda: daemon.metric(lost) == 3, "what waited is lost")
        assert 0 == daemon.metric(waiting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": [1, 2]}, "rank: expected one of"),
        ({"ranks": [1, 0]}, "ranks: expected up to"),
        ({"ranks": range(65)}, "ranks: expected up to"),
        ({"rank_hook_points": ["blocks.9.hook_resid_post"]}, "rank_hook_points"),
    ],
)
def test_a_hello_of_ranks_that_can_not_be_is_refused(
    daemon: RunningDaemon, changes: dict[str, object], message: str
) -> None:
    """Ranks are few, in order, and the sender is one of them."""
    with Client(daemon.place.address) as client, pytest.raises(grpc.RpcError) as info:
        client.capture.Hello(hello("ranks", **changes))
    assert info.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in str(info.value.details())
