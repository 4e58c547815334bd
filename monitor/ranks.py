# Rule 1: a step is scored when every rank has told of it, and lost if one of them has
# lost it: a detector may read several ranks' hook points, and a token is scored by all
# detectors or by none.
#
# Rule 2: ranks number steps alike. What does not fit together for all that is refused:
# no row is scored with another token's columns.
#
# Rule 3: what waits is bounded. A rank that falls far behind has lost what it did not
# tell.
"""Joins what the ranks of one engine, its pipeline stages, tell of each step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from monitor.checks import BatchError
from monitor.records import MISATTRIBUTED, Gap, LossReason, LostRange, StepBatch

_MAX_AHEAD = 1024
"""Entries of one rank that wait for another."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Generic[T]):
    """
    What one rank told of a step, or of neighbouring steps that it lost.

    *carried* is the caller's.
    """

    record: StepBatch | Gap
    carried: tuple[T, ...]

    @property
    def first_step(self) -> int:
        """The first step that it is about."""
        record = self.record
        return record.step if isinstance(record, StepBatch) else record.first_step

    @property
    def last_step(self) -> int:
        """The last step that it is about."""
        record = self.record
        return record.step if isinstance(record, StepBatch) else record.last_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Generic[T]):
    """
    All that the ranks told of the same steps, by rank; *is_whole* if all have rows.
    """

    told: tuple[Told[T], ...]
    is_whole: bool


class RankJoin(Generic[T]):
    """What each rank of one engine told and another has not, in order of steps."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self._waiting: dict[int, dict[int, Told[T]]] = {r: {} for r in sorted(ranks)}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that tells."""
        return tuple(self._waiting)

    @property
    def n_waiting(self) -> int:
        """How many entries wait for other ranks."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def put(self, rank: int, told: Told[T]) -> None:
        """
        Keep what *rank* told.

        Of what it told twice, as after a broken connection, the longer is kept, which
        is a gap that has grown, and what both carried.

        Raises:
            BatchError: No such rank sends.
        """
        if rank not in self._waiting:
            raise BatchError(f"rank: expected one of {self.ranks}, got {rank}")
        waiting = self._waiting[rank]
        before = waiting.get(told.first_step)
        if before is not None:
            longer = max(before, told, key=lambda t: t.last_step)
            told = Told(record=longer.record, carried=before.carried + told.carried)
        waiting[told.first_step] = told

    def carry(self, rank: int, carried: T) -> bool:
        """Let *carried* come out with the last that waits of a rank; False if none."""
        waiting = self._waiting.get(rank)
        if not waiting:
            return False
        last = max(waiting)
        told = waiting[last]
        waiting[last] = Told(record=told.record, carried=(*told.carried, carried))
        return True

    def ready(self) -> Iterator[Group[T]]:
        """Take out, step by step, what all ranks have told of."""
        while (group := self._next(is_over=False)) is not None:
            yield group

    def flush(self) -> Iterator[Group[T]]:
        """Take out everything: nobody will tell more."""
        while (group := self._next(is_over=True)) is not None:
            yield group

    def _next(self, *, is_over: bool) -> Group[T] | None:
        heads = [min(waiting) for waiting in self._waiting.values() if waiting]
        if not heads:
            return None
        until = self._last_of_group(min(heads))
        is_behind = any(
            max((told.last_step for told in waiting.values()), default=-1) < until
            for waiting in self._waiting.values()
        )
        if is_behind and not is_over and not self._is_far_ahead():
            return None
        told = [
            waiting.pop(first)
            for waiting in self._waiting.values()
            for first in sorted(waiting)
            if first <= until
        ]
        is_whole = len(told) == len(self._waiting) and all(
            isinstance(one.record, StepBatch) for one in told
        )
        return Group(told=tuple(told), is_whole=is_whole)

    def _last_of_group(self, until: int) -> int:
        """Widen *until* to the end of every gap that begins by then."""
        while True:
            wider = max(
                told.last_step
                for waiting in self._waiting.values()
                for told in waiting.values()
                if told.first_step <= until
            )
            if wider <= until:
                return until
            until = wider

    def _is_far_ahead(self) -> bool:
        return any(len(waiting) > _MAX_AHEAD for waiting in self._waiting.values())


def joined(parts: Sequence[StepBatch]) -> StepBatch:
    """
    Return one step with every rank's hook points.

    A row whose token is not the same on every rank is `MISATTRIBUTED`.

    Raises:
        BatchError: The parts are not of the same rows, or of the same bank.
    """
    first = parts[0]
    for part in parts[1:]:
        _check_alike(first, part)
    norms = {h: n for part in parts for h, n in part.squared_norms.items()}
    is_other = np.zeros(len(first.token_ids), dtype=np.bool_)
    for part in parts[1:]:
        is_other |= part.token_ids != first.token_ids
    if is_other.any():
        norms = {h: np.where(is_other, MISATTRIBUTED, n) for h, n in norms.items()}
    return replace(
        first,
        columns={h: c for part in parts for h, c in part.columns.items()},
        activations={h: a for part in parts for h, a in part.activations.items()},
        squared_norms=norms,
        # On vLLM's V1 runner the last stage alone knows the slots.
        slots=max((part.slots for part in parts), key=len),
        cached=max((part.cached for part in parts), key=len),
        n_positions={r: n for part in parts for r, n in part.n_positions.items()},
        weights_generation=max(part.weights_generation for part in parts),
    )


def joined_gap(told: Sequence[StepBatch | Gap]) -> Gap:
    """
    Return what is lost where some rank told of a gap, or did not tell.

    Positions that several ranks name are counted once by the books; of what none
    names, the most that one rank counted.
    """
    gaps = [record for record in told if isinstance(record, Gap)]
    if not gaps:
        gaps = [_gap_of(record) for record in told if isinstance(record, StepBatch)][:1]
    lost = tuple(dict.fromkeys(one for gap in gaps for one in gap.lost))
    n_listed = sum(one.n_tokens for one in lost)
    finished = tuple(dict.fromkeys(name for gap in gaps for name in gap.finished))
    n_unlisted = max(g.n_tokens - sum(x.n_tokens for x in g.lost) for g in gaps)
    n_unnamed = max(g.n_finished - len(g.finished) for g in gaps)
    return replace(
        gaps[0],
        first_step=min(gap.first_step for gap in gaps),
        last_step=max(gap.last_step for gap in gaps),
        n_tokens=n_listed + n_unlisted,
        lost=lost,
        finished=finished,
        n_finished=len(finished) + max(0, n_unnamed),
        began_at=min(gap.began_at for gap in gaps),
        ended_at=max(gap.ended_at for gap in gaps),
    )


def _check_alike(first: StepBatch, other: StepBatch) -> None:
    names = ("row_offsets", "first_positions")
    is_alike = first.request_ids == other.request_ids and all(
        np.array_equal(getattr(first, name), getattr(other, name)) for name in names
    )
    if not is_alike or first.token_ids.shape != other.token_ids.shape:
        raise BatchError(
            f"step {first.step}: ranks {first.rank} and {other.rank} have other rows"
        )
    if first.bank_digest != other.bank_digest:
        raise BatchError(
            f"step {first.step}: expected one bank on all ranks, got "
            f"{first.bank_digest[:12]!r} and {other.bank_digest[:12]!r}"
        )
    twice = first.squared_norms.keys() & other.squared_norms.keys()
    if twice:
        raise BatchError(f"step {first.step}: two ranks sent {sorted(twice)}")


def _gap_of(batch: StepBatch) -> Gap:
    n_rows_each = np.diff(batch.row_offsets).tolist()
    return Gap(
        engine=batch.engine,
        rank=batch.rank,
        reason=LossReason.NOT_RECEIVED,
        first_step=batch.step,
        last_step=batch.step,
        n_tokens=sum(n_rows_each),
        lost=tuple(
            LostRange(request_id=r, first_position=first, n_tokens=n)
            for r, first, n in zip(
                batch.request_ids,
                batch.first_positions.tolist(),
                n_rows_each,
                strict=True,
            )
        ),
        finished=batch.finished,
    )
