import resource
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from service.capture.arena import Arena, Piece
from service.capture.messages import fill_batch
from service.capture.outbox import Outbox
from service.capture.requests import RequestFacts
from service.capture.rows import Rows
from service.capture.snapshot import Snapshooter
from service.capture.step import Step, row_bytes
from service.capture.tap import TapBuffers
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import batch_from_proto

SIZE = 1024


def bytes_of(arena: Arena, piece: Piece) -> NDArray[np.uint8]:
    """The piece's own."""
    return arena.array[piece.start : piece.start + piece.n_bytes]


class Pieces(RuleBasedStateMachine):
    """Pieces of any sizes, taken and given back as room allows."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(SIZE, pin_memory=False)
        self.out: list[tuple[Piece, int]] = []
        self.n_taken = 0

    @rule(n_bytes=st.integers(1, SIZE + 64))
    def take(self, n_bytes: int) -> None:
        piece = self.arena.take(n_bytes)
        if piece is None:
            assert self.out or n_bytes > SIZE, "it is empty, and has no room"
            return
        self.n_taken += 1
        bytes_of(self.arena, piece)[:] = self.n_taken % 251
        self.out.append((piece, self.n_taken % 251))

    @precondition(lambda self: self.out)
    @rule()
    def give_back(self) -> None:
        self.out.pop(0)[0].give_back()

    @invariant()
    def nobody_wrote_into_anothers(self) -> None:
        for piece, mark in self.out:
            assert (bytes_of(self.arena, piece) == mark).all()


TestPieces = Pieces.TestCase
TestPieces.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def make_snapshooter(arena: Arena, n_rows: int) -> Snapshooter:
    """Return one of buffers of two hook points with three columns."""
    buffers = TapBuffers.allocate(
        n_sites=2, max_rows=n_rows, d_model=4, k_max=3, device=torch.device("cpu")
    )
    buffers.values.copy_(torch.arange(buffers.values.numel()).view_as(buffers.values))
    buffers.squared_norms.fill_(7.0)
    return Snapshooter(buffers, arena)


def take_step(
    snapshooter: Snapshooter, number: int, n_rows: int, width: int = 2
) -> Step:
    """Return a step of one request with its rows copied."""
    token_ids = torch.arange(n_rows) + number
    return take(snapshooter, number, token_ids, token_ids + 1, width)


def take(
    snapshooter: Snapshooter,
    number: int,
    token_ids: torch.Tensor,
    slots: torch.Tensor | None,
    width: int = 2,
) -> Step:
    """Return a step of one request with these token ids and slots copied."""
    n_rows = len(token_ids)
    step = Step(
        step=number,
        bank_digest="digest",
        captured_at=0.0,
        n_rows_expected=n_rows,
        rows=Rows(
            request_ids=("a",),
            n_rows=np.array([n_rows]),
            first_positions=np.array([number * n_rows]),
            token_ids=token_ids,
        ),
        facts=(RequestFacts(n_prompt_tokens=n_rows),),
    )
    step.piece = snapshooter.reserve(n_rows, width)
    snapshooter.take_into(step, token_ids, slots, width)
    return step


def test_a_snapshot_is_what_the_taps_wrote() -> None:
    """Columns in use, norms, token ids and slots lie in the arena, each as it was."""
    snapshooter = make_snapshooter(Arena(4096, pin_memory=False), 5)

    step = take_step(snapshooter, 3, 4)
    step.unpack()

    assert step.values is not None
    assert [[0, 1], [3, 4], [6, 7], [9, 10]] == step.values[0].tolist()
    assert [[15, 16], [18, 19], [21, 22], [24, 25]] == step.values[1].tolist()
    assert step.squared_norms is not None
    assert (step.squared_norms == 7.0).all()
    assert [3, 4, 5, 6] == np.asarray(step.token_ids).tolist()
    assert [4, 5, 6, 7] == np.asarray(step.slots).tolist()


@pytest.mark.parametrize("width", [0, 1, 2, 3])
@pytest.mark.parametrize("n_rows", [0, 1, 499, 500, 501, 1200])
def test_a_snapshot_of_any_shape(n_rows: int, width: int) -> None:
    """Whether all columns are in use or some, a row or many: the first of each."""
    snapshooter = make_snapshooter(Arena(1 << 20, pin_memory=False), 1200)

    step = take_step(snapshooter, 0, n_rows, width)
    step.unpack()

    every = np.arange(2 * 1200 * 3, dtype=np.float32).reshape(2, 1200, 3)
    assert np.array_equal(every[:, :n_rows, :width], np.asarray(step.values))
    assert np.array_equal(np.full((2, n_rows), 7.0), np.asarray(step.squared_norms))
    assert np.array_equal(np.arange(n_rows), np.asarray(step.token_ids))
    assert np.array_equal(np.arange(n_rows) + 1, np.asarray(step.slots))


def test_token_ids_are_those_of_the_step() -> None:
    """
    Not those of the step before, though they lie in the same buffer, in a part of it,
    in a longer part, or in another one of another type.
    """
    snapshooter = make_snapshooter(Arena(1 << 20, pin_memory=False), 50)
    memory = torch.zeros(50, dtype=torch.int64)
    # The third lies where the first does.
    buffers = memory, torch.zeros(50, dtype=torch.int64), memory.view(torch.int32)

    for number, (buffer, n) in enumerate(product(buffers * 2, (3, 5, 2, 5))):
        buffer.copy_(torch.arange(len(buffer)) + number)
        step = take(snapshooter, number, buffer[:n], buffer[1 : n + 1])
        step.unpack()
        expected = np.arange(n) + number
        assert np.array_equal(expected, np.asarray(step.token_ids)), number
        assert np.array_equal(expected + 1, np.asarray(step.slots)), number


@pytest.mark.parametrize("max_rows", [2, 3, 100])
@pytest.mark.parametrize("slot_type", [torch.int32, torch.int64, None])
@pytest.mark.parametrize("id_type", [torch.int32, torch.int64])
def test_what_is_sent_is_what_was_there(
    id_type: torch.dtype, slot_type: torch.dtype | None, max_rows: int
) -> None:
    """
    A step as the engine's thread leaves it, whole or in parts, becomes messages that
    hold each row's columns, norm, token and KV slot, of whatever type the runner's are.
    """
    snapshooter = make_snapshooter(Arena(4096, pin_memory=False), 9)
    ids = torch.arange(7, dtype=id_type) + 50
    slots = None if slot_type is None else torch.arange(7, dtype=slot_type) + 900
    for number in (1, 2):
        step = take(snapshooter, number, ids, slots)

        received = []
        for part in step.in_parts(max_rows):
            message = pb.StepBatch()
            fill_batch(message, part, ("early", "late"))
            received.append(batch_from_proto(message, engine="e", rank=0))

        assert -(-7 // max_rows) == len(received)
        token_ids = np.concatenate([one.token_ids for one in received])
        assert list(range(50, 57)) == token_ids.tolist()
        expected = [] if slots is None else list(range(900, 907))
        assert expected == np.concatenate([one.slots for one in received]).tolist()
        for hook_point, first in (("early", 0), ("late", 27)):
            columns = np.concatenate([one.columns[hook_point] for one in received])
            assert [[first + 3 * i, first + 3 * i + 1] for i in range(7)] == (
                columns.tolist()
            )
            norms = [one.squared_norms[hook_point] for one in received]
            assert [7.0] * 7 == np.concatenate(norms).tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_may_lie_apart(dtype: torch.dtype) -> None:
    """Those of every second place are copied, and not their neighbours."""
    snapshooter = make_snapshooter(Arena(4096, pin_memory=False), 6)
    memory = torch.arange(12, dtype=dtype)

    for _ in range(2):
        together = take(snapshooter, 1, memory[:6], memory[6:])
        apart = take(snapshooter, 2, memory[::2], memory[1::2])
        memory += 12
        again = take(snapshooter, 3, memory[::2], memory[1::2])
        for step in (together, apart, again):
            step.unpack()

        assert np.array_equal(memory[:6] - 12, np.asarray(together.token_ids))
        assert np.array_equal(memory[6:] - 12, np.asarray(together.slots))
        assert np.array_equal(memory[::2] - 12, np.asarray(apart.token_ids))
        assert np.array_equal(memory[1::2] - 12, np.asarray(apart.slots))
        assert np.array_equal(memory[::2], np.asarray(again.token_ids))
        assert np.array_equal(memory[1::2], np.asarray(again.slots))


def test_fewer_slots_than_rows_are_none() -> None:
    """A step says nothing of slots that are not there: they would be another step's."""
    snapshooter = make_snapshooter(Arena(4096, pin_memory=False), 5)

    with pytest.raises(ValueError, match="expected 4 ids or slots, got 3"):
        take(snapshooter, 1, torch.arange(4), torch.arange(3))


def test_rows_that_were_not_reserved_go_nowhere() -> None:
    """A step with more rows than its piece is for would write over another's."""
    snapshooter = make_snapshooter(Arena(4096, pin_memory=False), 5)
    step = take_step(snapshooter, 1, 3)

    step.n_rows_expected = 4
    with pytest.raises(ValueError, match=f"expected {3 * row_bytes(2, 2)} bytes"):
        snapshooter.take_into(step, torch.arange(4), None, 2)


def test_memory_comes_back_with_the_acknowledgement() -> None:
    """
    Also that of a step in parts, and of one that was lost once it had been copied.

    Ten thousand steps go through room for three.
    """
    arena = Arena(3 * 40 * row_bytes(2, 2), pin_memory=False)
    snapshooter, outbox = make_snapshooter(arena, 40), Outbox(1 << 20)
    stream = outbox.begin_stream()
    for number in range(10_000):
        step = take_step(snapshooter, number, 40)
        if number % 3:
            for part in step.in_parts(16 if number % 2 else 64):
                outbox.put(part, pb.LOSS_REASON_BUFFER_FULL)
        else:
            outbox.lose(step, pb.LOSS_REASON_NO_BANK)
        while not number % 2 and outbox.next_entry(stream, 1 << 20, 0.0) is not None:
            outbox.acknowledge(stream)


def test_a_daemon_that_is_gone_costs_no_page_faults() -> None:
    """What piles up goes into memory that was touched at start."""
    arena = Arena(64 << 20, pin_memory=False)
    row = np.ones(256 << 10, dtype=np.uint8)
    n_before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    n_pieces = 0
    while (piece := arena.take(len(row))) is not None:
        bytes_of(arena, piece)[:] = row
        n_pieces += 1
    n_faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - n_before
    assert n_pieces == 256
    assert n_faults < n_pieces, "a page has to be there before it is written"
