"""Turns what was refused into a gap, so that its tokens are counted."""

from collections.abc import Iterable

from monitor.records import Gap, LossReason, LostRange
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import MAX_COUNT, MAX_NAME, WireError, layout_of


def gap_of_batch_message(message: pb.StepBatch, *, engine: str, rank: int) -> Gap:
    """Count every row of a batch message that could not be converted."""
    try:
        layout = layout_of(message)[:, :2].tolist()
    except WireError:
        layout = []
    named = zip(message.request_ids, layout, strict=False)
    lost = tuple(
        LostRange(request_id=r, first_position=first, n_tokens=n)
        for r, (n, first) in named
        if _is_name(r) and n
    )
    return _gap(
        engine,
        rank,
        message.step,
        n_tokens=max(message.n_rows_expected, sum(n for n, _ in layout)),
        lost=lost,
        finished=_names(message.finished),
    )


def gap_of_gap_message(message: pb.Gap, *, engine: str, rank: int) -> Gap:
    """Count what a gap message that could not be converted says was lost."""
    n_listed = sum(lost.n_tokens for lost in message.lost)
    return _gap(
        engine,
        rank,
        message.last_step,
        n_tokens=max(message.n_tokens, n_listed),
        lost=(),
        finished=_names(message.finished),
    )


def _gap(
    engine: str,
    rank: int,
    step: int,
    *,
    n_tokens: int,
    lost: tuple[LostRange, ...],
    finished: tuple[str, ...],
) -> Gap:
    # A step that cannot be must not make the real ones look repeated.
    step = 0 if step > MAX_COUNT else step
    return Gap(
        engine=engine,
        rank=rank,
        reason=LossReason.REFUSED,
        first_step=step,
        last_step=step,
        n_tokens=min(n_tokens, MAX_COUNT),
        lost=lost,
        finished=finished,
    )


def _names(finished: Iterable[pb.FinishedRequest]) -> tuple[str, ...]:
    names = (request.request_id for request in finished)
    return tuple(dict.fromkeys(name for name in names if _is_name(name)))


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME
