"""Messages and records say the same, and malformed bytes only raise WireError."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.core import BatchError, Monitor
from monitor.records import CachedPrefix, Gap, LossReason, LostRange, StepBatch
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import (
    REASON_FROM_PROTO,
    REASON_TO_PROTO,
    WireError,
    batch_from_proto,
    gap_from_proto,
    identity_from_proto,
)
from tests.monitor.builders import ENGINE, LATE, Rows, batch, monitor, quiet
from tests.service.builders import identity
from tests.service.messages import batch_to_proto, gap_to_proto, identity_to_proto

_SEVEN = np.arange(7, dtype=np.int32)


def message() -> pb.StepBatch:
    return batch_to_proto(
        batch(Rows("a", 0, quiet(2)), Rows("b", 7, quiet(1), n_cached=7))
    )


def convert(message: pb.StepBatch) -> StepBatch:
    return batch_from_proto(message, engine=ENGINE, rank=0)


def test_every_reason_travels() -> None:
    """
    The table has each reason of both sides, once.
    """
    assert set(LossReason) == set(REASON_TO_PROTO)
    assert set(pb.LossReason.values()) == {0, *REASON_FROM_PROTO}
    for reason, number in REASON_TO_PROTO.items():
        assert f"LOSS_REASON_{reason.name}" == pb.LossReason.Name(number)


@pytest.mark.parametrize("holds_activations", [False, True])
def test_a_batch_survives_the_wire(holds_activations: bool) -> None:
    """
    Every field of a batch comes back as it was.
    """
    sent = batch(
        Rows("a", 0, quiet(2)),
        Rows("b", 7, [[1.0, 2.0, 3.0, 4.0]], n_cached=7, n_prompt_tokens=9),
        finished=("z",),
        holds_activations=holds_activations,
    )
    sent = replace(
        sent,
        slots=np.array([32, 33, 71], dtype=np.int32),
        cached={1: CachedPrefix(token_ids=_SEVEN, slots=_SEVEN + 64)},
        adapters=("", "lora"),
        weights_generation=3,
        n_drafts=np.array([1, 0]),
        n_positions={"z": 12},
    )
    bytes_sent = batch_to_proto(sent).SerializeToString()

    found = convert(pb.StepBatch.FromString(bytes_sent))

    for name, value in asdict(sent).items():
        if name != "cached":
            np.testing.assert_equal(value, getattr(found, name), err_msg=name)
    assert {1} == found.cached.keys()
    np.testing.assert_equal(found.cached[1].token_ids, _SEVEN)
    np.testing.assert_equal(found.cached[1].slots, _SEVEN + 64)


def test_a_gap_survives_the_wire() -> None:
    """
    Every field of a gap comes back as it was.
    """
    sent = Gap(
        engine=ENGINE,
        rank=2,
        reason=LossReason.DISCONNECTED,
        first_step=3,
        last_step=9,
        n_tokens=11,
        lost=(LostRange(request_id="a", first_position=4, n_tokens=6),),
        finished=("a", "b"),
        n_finished=4,
        began_at=1.5,
        ended_at=2.5,
    )

    assert sent == gap_from_proto(gap_to_proto(sent), engine=ENGINE, rank=2)


def test_an_identity_survives_the_wire() -> None:
    """
    The fields are the keyword arguments that build the identity again.
    """
    fields = identity_from_proto(identity_to_proto(identity()))

    assert identity() == identity(**fields)


def _set(**fields: object) -> Callable[[pb.StepBatch], None]:
    def change(message: pb.StepBatch) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def _set_rows(**fields: object) -> Callable[[pb.StepBatch], None]:
    def change(message: pb.StepBatch) -> None:
        for name, value in fields.items():
            setattr(message.hook_points[1], name, value)

    return change


def _add(request_id: str, numbers: list[int]) -> Callable[[pb.StepBatch], None]:
    def change(message: pb.StepBatch) -> None:
        message.request_ids.append(request_id)
        message.layout += np.array(numbers, dtype="<i4").tobytes()

    return change


def _without_hook_points(message: pb.StepBatch) -> None:
    del message.hook_points[:]
    message.token_ids = b""


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_set_rows(values=b"abc"), "hook_points[1].values"),
        (_set_rows(width=2**32 - 1), "hook_points[1].values"),
        (_set_rows(squared_norms=b""), "hook_points[1].squared_norms"),
        (_set_rows(hook_point=""), "hook_points[1].hook_point"),
        (_set_rows(hook_point="blocks.1.hook_resid_post"), "hook_points[1].hook"),
        (_set(token_ids=b"1"), "token_ids"),
        (_set(step=2**64 - 1), "step"),
        (_add("a", [0, 0, 0, 0, 0]), "request_ids"),
        (_add("", [0, 0, 0, 0, 0]), "request_ids"),
        (_add("x" * 600, [0, 0, 0, 0, 0]), "request_ids"),
        (_add("c", [7, 0, 0, 0, 0]), "values"),
        (_add("c", [2**31 - 1, 0, 0, 0, 0]), "4194304 rows"),
        (_add("c", [-1, 0, 0, 0, 0]), "layout: expected 0 or more"),
        (_add("c", [0, 0, 0, 0]), "layout"),
        (_set(layout=b""), "layout"),
        (lambda m: m.adapters.append("lora"), "adapters"),
        (lambda m: m.cached.add(request=99), "cached[0].request"),
        (lambda m: m.cached.add(token_ids=b"1"), "cached[0].token_ids"),
        (_without_hook_points, "at one hook point or more"),
        (lambda m: m.preempted.extend(["c", "c"]), "preempted"),
        (lambda m: m.finished.add(), "finished"),
    ],
)
def test_a_malformed_batch_names_the_field(
    change: Callable[[pb.StepBatch], None], where: str
) -> None:
    """
    The error says where, what was expected and what came.
    """
    bad = message()
    change(bad)

    with pytest.raises(WireError) as caught:
        convert(bad)

    assert where in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        pb.Gap(n_tokens=1),
        pb.Gap(reason=77, n_tokens=1),  # type: ignore[arg-type]
        pb.Gap(reason=1, n_tokens=2**64 - 1),  # type: ignore[arg-type]
        pb.Gap(reason=1, last_step=2**64 - 1),  # type: ignore[arg-type]
        pb.Gap(reason=1, began_at=float("nan")),  # type: ignore[arg-type]
        pb.Gap(reason=1, lost=[pb.LostRange(request_id="a", n_tokens=1)]),  # type: ignore[arg-type]
        pb.Gap(reason=1, n_tokens=1, lost=[pb.LostRange(n_tokens=1)]),  # type: ignore[arg-type]
        pb.Gap(reason=1, finished=[pb.FinishedRequest()]),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_gap_is_refused(bad: pb.Gap) -> None:
    """
    A gap that cannot be counted or stored raises WireError.
    """
    with pytest.raises(WireError, match="expected"):
        gap_from_proto(bad, engine=ENGINE, rank=0)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 7), st.integers(0, 2))
def test_a_flipped_bit_never_crashes(place: int, bit: int, times: int) -> None:
    """
    Damaged bytes are refused or understood; nothing else is raised, and the books
    balance after them.
    """
    raw = bytearray(message().SerializeToString())
    for i in range(times + 1):
        raw[(place * (i + 1)) % len(raw)] ^= 1 << bit
    watch: Monitor = monitor()

    try:
        watch.observe(convert(pb.StepBatch.FromString(bytes(raw))))
    except (DecodeError, WireError, BatchError):
        assert 0 == watch.totals.tokens.n_expected
    assert watch.totals.tokens.is_balanced


def test_a_batch_without_tokens_ids_is_understood() -> None:
    """
    A sender that does not know the tokens sends none: they are unknown.
    """
    plain = message()
    plain.token_ids = b""

    assert [-1, -1, -1] == convert(plain).token_ids.tolist()
    assert LATE in convert(plain).columns
