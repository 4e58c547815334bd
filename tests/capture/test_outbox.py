import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.capture.messages import fill_batch, gap_message
from service.capture.outbox import Loss, Outbox
from service.capture.requests import RequestFacts
from service.capture.rows import Rows
from service.capture.step import Shape, Step
from service.capture.tap import NOT_WRITTEN
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import batch_from_proto, gap_from_proto, layout_of

HOOK_POINT = "blocks.1.hook_resid_post"
FULL = pb.LOSS_REASON_BUFFER_FULL


def make_step(number: int, first: int = 0, n_rows: int = 3, width: int = 2) -> Step:
    """Return a step of one request, rows *first* onwards."""
    return Step(
        step=number,
        bank_digest="digest",
        captured_at=float(number),
        n_rows_expected=n_rows,
        rows=Rows(
            request_ids=("a",),
            n_rows=np.array([n_rows]),
            first_positions=np.array([first]),
            token_ids=torch.arange(n_rows),
        ),
        facts=(RequestFacts(n_prompt_tokens=n_rows),),
        shape=Shape(1, n_rows, width, 4, 0),
        values=np.arange(n_rows * width, dtype=np.float32).reshape(1, -1, width),
        squared_norms=np.ones((1, n_rows), dtype=np.float32),
        token_ids=np.arange(n_rows, dtype=np.int32),
    )


def message_of(step: Step) -> pb.StepBatch:
    """Return *step* on the wire."""
    message = pb.StepBatch()
    fill_batch(message, step, (HOOK_POINT,))
    return message


def make_silent_step(number: int) -> Step:
    """Return a step with one row that no tap wrote."""
    norms = np.ones((1, 3), dtype=np.float32)
    norms[0, 1] = NOT_WRITTEN
    return dataclasses.replace(make_step(number), squared_norms=norms)


def test_drafts_are_no_tokens_of_a_loss() -> None:
    """
    However a step of a token and five drafts is cut, one token is lost with it, and no
    position that the next step has again.
    """
    for max_rows in range(1, 7):
        outbox = Outbox(1 << 20)
        stream = outbox.begin_stream()
        step = make_step(1, first=10, n_rows=6)
        assert step.rows is not None
        drafted = dataclasses.replace(
            step, rows=dataclasses.replace(step.rows, first_drafts={"a": 11})
        )

        for part in drafted.in_parts(max_rows):
            outbox.lose(part, FULL)

        loss = outbox.next_entry(stream, 1, 0.0)
        assert isinstance(loss, Loss)
        gap = gap_message(loss)
        assert 1 == gap.n_tokens, max_rows
        lost = [(one.first_position, one.n_tokens) for one in gap.lost]
        assert [(10, 1)] == lost, max_rows


def test_a_loss_stays_between_its_neighbours() -> None:
    """The daemon hears of a loss where it happened in the order of steps."""
    outbox = Outbox(1 << 20)
    stream = outbox.begin_stream()
    outbox.put(make_step(1), FULL)
    outbox.lose(make_step(2, first=3), pb.LOSS_REASON_BUFFER_FULL)
    outbox.lose(make_step(3, first=6), pb.LOSS_REASON_BUFFER_FULL)
    outbox.put(make_step(4, first=9), FULL)

    entries = [outbox.next_entry(stream, 10, 0) for _ in range(4)]

    assert isinstance(entries[0], Step)
    assert isinstance(entries[2], Step)
    assert isinstance(entries[1], Loss)
    gap = gap_message(entries[1])
    assert (2, 3, 6) == (gap.first_step, gap.last_step, gap.n_tokens)
    assert [("a", 3, 6)] == [
        (r.request_id, r.first_position, r.n_tokens) for r in gap.lost
    ]
    assert entries[3] is None


def test_an_id_of_any_length_is_one_that_the_daemon_takes() -> None:
    """
    A client that chooses a very long id has its requests watched, and all others of
    the step; two long ids that begin alike stay two.
    """
    names = ("x" * 100_000, "x" * 100_001, "b")
    rows = Rows(
        request_ids=names,
        n_rows=np.array([1, 1, 1]),
        first_positions=np.array([0, 0, 0]),
        token_ids=torch.arange(3),
    )
    facts = (RequestFacts(n_prompt_tokens=1),) * 3
    step = dataclasses.replace(
        make_step(1), rows=rows, facts=facts, finished=names[:1], preempted=names[1:2]
    )

    batch = batch_from_proto(message_of(step), engine="e", rank=0)
    outbox = Outbox(1 << 20)
    stream = outbox.begin_stream()
    outbox.lose(step, FULL)
    loss = outbox.next_entry(stream, 10, 0)
    assert isinstance(loss, Loss)
    gap = gap_from_proto(gap_message(loss), engine="e", rank=0)

    assert 3 == len(set(batch.request_ids))
    assert "b" in batch.request_ids
    assert batch.finished == batch.request_ids[:1] == gap.finished
    assert batch.preempted == batch.request_ids[1:2]
    assert {lost.request_id for lost in gap.lost} == set(batch.request_ids)


def test_a_long_loss_names_so_many_and_counts_the_rest() -> None:
    """An outage of any length takes bounded memory, and loses no count."""
    outbox = Outbox(1 << 20)
    stream = outbox.begin_stream()
    for number in range(1, 40_001):
        ends = dataclasses.replace(make_step(number), finished=(f"r{number}",))
        outbox.lose(ends, pb.LOSS_REASON_DISCONNECTED)

    loss = outbox.next_entry(stream, 10, 0)

    assert isinstance(loss, Loss)
    assert (40_000, 120_000) == (loss.n_finished, loss.n_tokens)
    assert len(loss.finished) == len(loss.more) + len(loss.ranges) == 16384


def test_ends_without_rows_take_bounded_memory() -> None:
    """Beyond the limit they are one loss that names them."""
    outbox = Outbox(8 << 10)
    stream = outbox.begin_stream()
    for number in range(1, 101):
        end = dataclasses.replace(
            make_step(number),
            n_rows_expected=0,
            rows=None,
            facts=(),
            shape=None,
            values=None,
            squared_norms=None,
            token_ids=None,
            finished=(f"r{number}",),
        )
        outbox.put(end, FULL)

    entries = [outbox.next_entry(stream, 1000, 0) for _ in range(9)]

    assert [f"r{i}" for i in range(9, 101)] == next(
        entry.finished for entry in entries if isinstance(entry, Loss)
    )
    assert outbox.next_entry(stream, 1000, 0) is None


def test_a_step_too_large_for_a_message_travels_in_parts() -> None:
    """Each row is in one part, under its request and position; ends come once."""
    rows = Rows(
        request_ids=("a", "b", "c"),
        n_rows=np.array([1, 5, 2]),
        first_positions=np.array([9, 0, 4]),
        token_ids=torch.arange(8),
    )
    step = Step(
        step=7,
        bank_digest="",
        captured_at=0.0,
        n_rows_expected=8,
        rows=rows,
        facts=tuple(
            RequestFacts(n_cached=cached, n_prompt_tokens=n)
            for cached, n in ((0, 9), (0, 5), (2, 6))
        ),
        shape=Shape(1, 8, 1, 4, 0),
        values=np.arange(8, dtype=np.float32).reshape(1, 8, 1),
        squared_norms=np.ones((1, 8), dtype=np.float32),
        token_ids=np.arange(8, dtype=np.int32),
        finished=("z",),
    )

    parts = [message_of(part) for part in step.in_parts(3)]

    assert [7, 8, 9] == [part.step for part in parts]
    assert [3, 3, 2] == [part.n_rows_expected for part in parts]
    assert [1, 0, 0] == [len(part.finished) for part in parts]
    assert [("a", 9, 1), ("b", 0, 2), ("b", 2, 3), ("c", 4, 2)] == [
        (name, first, n)
        for part in parts
        for name, (n, first, *_) in zip(
            part.request_ids, layout_of(part).tolist(), strict=True
        )
    ]
    values = b"".join(part.hook_points[0].values for part in parts)
    assert list(range(8)) == np.frombuffer(values, dtype=np.float32).tolist()
    assert [6] == layout_of(parts[2])[:, 3].tolist()


def test_a_silent_tap_shows_in_the_step() -> None:
    """One row without its poison overwritten is enough."""
    assert make_step(1).is_written
    assert not make_silent_step(1).is_written


def test_a_loss_that_was_sent_is_not_changed() -> None:
    """What is lost after a gap went out is a gap of its own."""
    outbox = Outbox(1 << 20)
    stream = outbox.begin_stream()
    outbox.lose(make_step(1), pb.LOSS_REASON_DISCONNECTED)
    sent = outbox.next_entry(stream, 10, 0)
    outbox.lose(make_step(2, first=3), pb.LOSS_REASON_DISCONNECTED)

    assert isinstance(sent, Loss)
    assert 3 == sent.n_tokens
    following = outbox.next_entry(stream, 10, 0)
    assert isinstance(following, Loss)
    assert following is not sent


def test_recomputed_ranges_are_listed_apart() -> None:
    """Positions lost twice, after a preemption, are two ranges, not a wrong one."""
    outbox = Outbox(1 << 20)
    stream = outbox.begin_stream()
    outbox.lose(make_step(1, first=0), pb.LOSS_REASON_DISCONNECTED)
    outbox.lose(make_step(2, first=0), pb.LOSS_REASON_DISCONNECTED)

    loss = outbox.next_entry(stream, 10, 0)

    assert isinstance(loss, Loss)
    ranges = [(r.first_position, r.n_tokens) for r in gap_message(loss).lost]
    assert [(0, 3), (0, 3)] == ranges


def test_room_comes_back_when_the_daemon_acknowledges() -> None:
    """The limit counts what is unacknowledged, sent or not."""
    step = make_step(1)
    outbox = Outbox(step.n_bytes)
    stream = outbox.begin_stream()
    outbox.put(step, FULL)
    assert not outbox.has_room(1)
    outbox.next_entry(stream, 10, 0)
    assert not outbox.has_room(1)

    outbox.acknowledge(stream)

    assert outbox.has_room(step.n_bytes)
    assert outbox.is_empty()


def test_a_stream_that_ended_takes_nothing_from_the_next() -> None:
    """A reader that still waits when its connection is gone gets no entry."""
    outbox = Outbox(1 << 20)
    old = outbox.begin_stream()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(outbox.next_entry, old, 10, 5.0)
        new = outbox.begin_stream()
        outbox.put(make_step(1), FULL)

        assert waiting.result() is None
    entry = outbox.next_entry(new, 10, 0)
    assert isinstance(entry, Step)
    outbox.acknowledge(old)
    assert not outbox.is_empty()
    outbox.acknowledge(new)
    assert outbox.is_empty()


@given(st.lists(st.sampled_from(["put", "lose", "send", "ack", "rewind"]), max_size=60))
def test_nothing_leaves_unacknowledged(actions: list[str]) -> None:
    """Whatever connections do, each row is acknowledged once and in order."""
    outbox = Outbox(1 << 30)
    stream = outbox.begin_stream()
    n_made = n_sent = 0
    acknowledged: list[int] = []
    sent: list[list[int]] = []
    for action in actions:
        if action in ("put", "lose"):
            n_made += 1
            step = make_step(n_made, first=3 * n_made)
            if action == "put":
                outbox.put(step, FULL)
            else:
                outbox.lose(step, pb.LOSS_REASON_BUFFER_FULL)
        elif (
            action == "send"
            and (entry := outbox.next_entry(stream, 1000, 0)) is not None
        ):
            steps = [entry.step] if isinstance(entry, Step) else []
            if isinstance(entry, Loss):
                steps = list(range(entry.first_step, entry.last_step + 1))
            sent.append(steps)
            n_sent += 1
        elif action == "ack" and sent:
            acknowledged += sent.pop(0)
            outbox.acknowledge(stream)
        elif action == "rewind":
            sent.clear()
            stream = outbox.begin_stream()
    while (entry := outbox.next_entry(stream, 1000, 0)) is not None:
        if isinstance(entry, Loss):
            sent.append(list(range(entry.first_step, entry.last_step + 1)))
        else:
            sent.append([entry.step])
    for steps in sent:
        acknowledged += steps

    assert list(range(1, n_made + 1)) == acknowledged


def test_a_step_becomes_a_message_with_its_rows() -> None:
    """Values, norms, tokens and the layout arrive on the wire as captured."""
    message = message_of(make_step(5, first=7))

    assert (5, "digest", 3) == (
        message.step,
        message.bank_digest,
        message.n_rows_expected,
    )
    assert [[3, 7, 0, 3, 0]] == layout_of(message).tolist()
    values = np.frombuffer(message.hook_points[0].values, dtype=np.float32)
    np.testing.assert_array_equal(np.arange(6), values)
    assert [0, 1, 2] == np.frombuffer(message.token_ids, dtype=np.int32).tolist()


@pytest.mark.parametrize(
    "make", [lambda: make_step(1), lambda: make_step(1, n_rows=64)]
)
def test_a_step_knows_its_size(make: Callable[[], Step]) -> None:
    """The buffer's limit counts every tensor that a step holds."""
    step = make()
    assert step.values is not None

    assert step.n_bytes > step.values.nbytes
