# Rule 1: a step is scored when every rank has told of it, and lost if one of them has
# lost it: a detector may read several ranks' hook points, and a token is scored by all
# detectors or by none.
#
# Rule 2: ranks number steps alike. What does not fit together for all that is refused:
# no row is scored with another token's columns.
#
# Rule 3: ranks are waited for, by whoever carries what they tell: nothing here says how
# long. What is given up comes out as lost.
"""Joins what the ranks of one engine, its pipeline stages, tell of each step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from monitor.checks import BatchError
from monitor.records import MISATTRIBUTED, Gap, StepBatch

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Generic[T]):
    """
    What one rank told of a step, or of neighbouring steps that it lost.

    *carried* is the caller's.
    """

    record: StepBatch | Gap
    carried: list[T]

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


class _Rank(Generic[T]):
    """What waits of one rank, by its first step, and the last step it told of."""

    def __init__(self) -> None:
        self.waiting: dict[int, Told[T]] = {}
        self.last_told = -1

    def put(self, told: Told[T]) -> None:
        before = self.waiting.get(told.first_step)
        if before is not None:
            longer = max(before, told, key=lambda t: t.last_step)
            told = Told(record=longer.record, carried=before.carried + told.carried)
        is_behind = before is None and told.first_step < self.last_told
        self.waiting[told.first_step] = told
        if is_behind:
            # Of a connection of before, and late.
            self.waiting = dict(sorted(self.waiting.items()))
        self.last_told = max(self.last_told, told.last_step)

    @property
    def head(self) -> Told[T] | None:
        return next(iter(self.waiting.values()), None)

    def take(self, until: int) -> list[Told[T]]:
        """Take out what is about no step after *until*."""
        taken = []
        while (head := self.head) is not None and head.last_step <= until:
            taken.append(self.waiting.pop(head.first_step))
        return taken


class RankJoin(Generic[T]):
    """What each rank of one engine told and another has not, in order of steps."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self._ranks: dict[int, _Rank[T]] = {rank: _Rank() for rank in sorted(ranks)}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank that tells."""
        return tuple(self._ranks)

    @property
    def n_waiting(self) -> int:
        """How many entries wait for other ranks."""
        return sum(len(rank.waiting) for rank in self._ranks.values())

    def put(self, rank: int, told: Told[T]) -> None:
        """
        Keep what *rank* told.

        Of what it told twice, as after a broken connection, the longer is kept, which
        is a gap that has grown, and what both carried.

        Raises:
            BatchError: No such rank sends.
        """
        if rank not in self._ranks:
            raise BatchError(f"rank: expected one of {self.ranks}, got {rank}")
        self._ranks[rank].put(told)

    def carry(self, rank: int, carried: T) -> bool:
        """Let *carried* come out with the last that waits of a rank; False if none."""
        known = self._ranks.get(rank)
        if known is None or not known.waiting:
            return False
        known.waiting[next(reversed(known.waiting))].carried.append(carried)
        return True

    def ready(self) -> Iterator[Group[T]]:
        """Take out, step by step, what all ranks have told of."""
        while (group := self._next(is_over=False)) is not None:
            yield group

    def flush(self) -> Iterator[Group[T]]:
        """Take out everything: the others are waited for no more."""
        while (group := self._next(is_over=True)) is not None:
            yield group

    def _next(self, *, is_over: bool) -> Group[T] | None:
        heads = [h for rank in self._ranks.values() if (h := rank.head) is not None]
        if not heads:
            return None
        first = min(head.first_step for head in heads)
        # A gap comes out at once, and not when all have told up to its end: those
        # whose parts come later would wait for their answers before they send more.
        if not is_over and any(r.last_told < first for r in self._ranks.values()):
            return None
        until = max(head.last_step for head in heads if head.first_step == first)
        told = [told for rank in self._ranks.values() for told in rank.take(until)]
        is_whole = len(told) == len(self._ranks) and all(
            isinstance(one.record, StepBatch) for one in told
        )
        return Group(told=tuple(told), is_whole=is_whole)


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
