"""Makes items of whole steps from what each rank of an engine sent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

from monitor.checks import BatchError
from monitor.losses import gap_of_batch, joined_gap
from monitor.ranks import Group, RankJoin, Told
from monitor.records import Gap, LossReason, StepBatch
from monitor.sets import WatchedSets
from service.daemon.items import (
    Answers,
    BankRefusalItem,
    BatchItem,
    GapItem,
    GoodbyeItem,
    HeartbeatItem,
)
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

StepItem = BatchItem | GapItem
BriefItem = HeartbeatItem | GoodbyeItem | BankRefusalItem


class AllAnswers:
    """The answers of several messages, of several streams: each gets its own."""

    def __init__(self, answers: Sequence[Answers]) -> None:
        self._answers = answers

    def put(self, answer: pb.StreamResponse | None, /) -> None:
        """Answer every message."""
        for one in self._answers:
            one.put(answer)


class Joining:
    """
    Kept by the ingest thread: which ranks each engine has, and what waits of each.

    What an engine of one rank sends passes through. Senders count their answers, so
    each stream's come in the order of its messages, also of those that wait. Times are
    of one clock that never goes back.
    """

    def __init__(self, sets: WatchedSets) -> None:
        self._sets = sets
        self._joins: dict[str, RankJoin[StepItem | Answers]] = {}
        self._since: dict[str, float] = {}

    @property
    def ranks(self) -> Mapping[str, Sequence[int]]:
        """The ranks of every engine that has several."""
        return {engine: join.ranks for engine, join in self._joins.items()}

    @property
    def n_waiting(self) -> int:
        """How many messages wait for those of another rank."""
        return sum(join.n_waiting for join in self._joins.values())

    def waiting_since(self) -> dict[str, float]:
        """Return, by engine of which something waits, when a step last came out."""
        return {e: since for e, since in self._since.items() if since < inf}

    def open(self, engine: str, ranks: Sequence[int]) -> list[StepItem]:
        """Note which ranks an engine has; return what it had with others, as lost."""
        known = self._joins.get(engine)
        if known is not None and known.ranks == tuple(ranks):
            return []
        lost = self.close(engine)
        if len(ranks) > 1:
            self._joins[engine] = RankJoin(ranks)
        return lost

    def put(self, item: StepItem, now: float) -> list[StepItem]:
        """Take what one rank sent, and return the steps that are whole with it."""
        record = record_of(item)
        join = self._joins.get(record.engine)
        if join is None:
            return [item]
        # Step 0 stands for a step that nobody knows.
        if isinstance(item, GapItem) and not item.gap.last_step:
            is_first = not join.carry(record.rank, item.answers)
            return [item if is_first else replace(item, answers=AllAnswers(()))]
        try:
            join.put(record.rank, Told(record=record, carried=[item]))
        except BatchError as error:
            return [_refused([item], item.answers, str(error))]
        whole = self._items(join.ready())
        if whole or not self._since.get(record.engine, inf) < inf:
            self._since[record.engine] = now if join.n_waiting else inf
        return whole

    def holds_back(self, item: BriefItem) -> bool:
        """Whether *item* is answered with what waits of its rank, and not now."""
        join = self._joins.get(item.engine)
        return join is not None and join.carry(item.rank, item.answers)

    def give_up(self, since: float) -> list[StepItem]:
        """Return, as lost, what has waited from *since* or before."""
        late = [engine for engine, at in self._since.items() if at <= since]
        lost = []
        for engine in late:
            self._since[engine] = inf
            lost += self._items(self._joins[engine].flush())
        return lost

    def close(self, engine: str) -> list[StepItem]:
        """Forget an engine that is gone; return what still waited, as lost."""
        join = self._joins.pop(engine, None)
        self._since.pop(engine, None)
        return [] if join is None else self._items(join.flush())

    def _items(self, groups: Iterable[Group[StepItem | Answers]]) -> list[StepItem]:
        return [self._item(group) for group in groups]

    def _item(self, group: Group[StepItem | Answers]) -> StepItem:
        carried = [one for told in group.told for one in told.carried]
        items = [one for one in carried if isinstance(one, StepItem)]
        records = [told.record for told in group.told]
        answers = AllAnswers(
            [one.answers if isinstance(one, StepItem) else one for one in carried]
        )
        if not group.is_whole:
            problems = [item.problem for item in items if isinstance(item, GapItem)]
            return GapItem(
                gap=joined_gap(records),
                answers=answers,
                problem=next(filter(None, problems), ""),
            )
        batches = [record for record in records if isinstance(record, StepBatch)]
        parts = [item for item in items if isinstance(item, BatchItem)]
        try:
            batch = self._sets.join(batches)
        except BatchError as error:
            return _refused(items, answers, str(error))
        return BatchItem(
            batch=batch,
            n_missing=max(part.n_missing for part in parts),
            captured_at=max(part.captured_at for part in parts),
            answers=answers,
        )


def refused(item: StepItem, problem: str) -> GapItem:
    """Return *item* as refused, of a step that nobody knows."""
    found = _refused([item], item.answers, problem)
    return replace(found, gap=replace(found.gap, first_step=0, last_step=0))


def record_of(item: StepItem) -> StepBatch | Gap:
    """Return what *item* is about."""
    return item.batch if isinstance(item, BatchItem) else item.gap


def _refused(items: Sequence[StepItem], answers: Answers, problem: str) -> GapItem:
    first = items[0]
    gap = (
        gap_of_batch(first.batch, LossReason.REFUSED, first.n_missing)
        if isinstance(first, BatchItem)
        else first.gap
    )
    return GapItem(gap=gap, answers=answers, problem=problem)
