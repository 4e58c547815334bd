"""Makes items of whole steps from what each rank of an engine sent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from monitor.checks import BatchError
from monitor.ranks import Group, RankJoin, Told, joined_gap
from monitor.records import Gap, StepBatch
from monitor.sets import WatchedSets
from service.daemon.items import (
    Answers,
    BankRefusalItem,
    BatchItem,
    GapItem,
    GoodbyeItem,
    HeartbeatItem,
)
from service.daemon.refusals import gap_of_batch
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
    each stream's come in the order of its messages, also of those that wait.
    """

    def __init__(self, sets: WatchedSets) -> None:
        self._sets = sets
        self._joins: dict[str, RankJoin[StepItem | BriefItem]] = {}

    @property
    def ranks(self) -> Mapping[str, Sequence[int]]:
        """The ranks of every engine that has several."""
        return {engine: join.ranks for engine, join in self._joins.items()}

    @property
    def n_waiting(self) -> int:
        """How many messages wait for those of another rank."""
        return sum(join.n_waiting for join in self._joins.values())

    def open(self, engine: str, ranks: Sequence[int]) -> None:
        """Note which ranks an engine has."""
        known = self._joins.get(engine)
        if len(ranks) > 1 and (known is None or known.ranks != tuple(ranks)):
            self._joins[engine] = RankJoin(ranks)

    def put(self, item: StepItem) -> list[StepItem]:
        """Take what one rank sent, and return the steps that are whole with it."""
        record = _record(item)
        join = self._joins.get(record.engine)
        if join is None:
            return [item]
        # Step 0 stands for a step that nobody knows.
        if isinstance(item, GapItem) and not item.gap.last_step:
            is_first = not join.carry(record.rank, item)
            return [item if is_first else replace(item, answers=AllAnswers(()))]
        try:
            join.put(record.rank, Told(record=record, carried=(item,)))
        except BatchError as error:
            return [_refused([item], str(error))]
        return self._items(join.ready())

    def holds_back(self, item: BriefItem) -> bool:
        """Whether *item* is answered with what waits of its rank, and not now."""
        join = self._joins.get(item.engine)
        return join is not None and join.carry(item.rank, item)

    def close(self, engine: str) -> list[StepItem]:
        """Forget an engine that is gone; return what still waited, as lost."""
        join = self._joins.pop(engine, None)
        return [] if join is None else self._items(join.flush())

    def _items(self, groups: Iterable[Group[StepItem | BriefItem]]) -> list[StepItem]:
        return [self._item(group) for group in groups]

    def _item(self, group: Group[StepItem | BriefItem]) -> StepItem:
        items = [item for told in group.told for item in told.carried]
        records = [told.record for told in group.told]
        answers = AllAnswers([item.answers for item in items])
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
            return _refused(items, str(error))
        return BatchItem(
            batch=batch,
            n_missing=max(part.n_missing for part in parts),
            captured_at=max(part.captured_at for part in parts),
            answers=answers,
        )


def _record(item: StepItem) -> StepBatch | Gap:
    return item.batch if isinstance(item, BatchItem) else item.gap


def _refused(items: Sequence[StepItem | BriefItem], problem: str) -> GapItem:
    first = next(item for item in items if isinstance(item, StepItem))
    gap = (
        gap_of_batch(first.batch, first.n_missing)
        if isinstance(first, BatchItem)
        else first.gap
    )
    answers = AllAnswers([item.answers for item in items])
    return GapItem(gap=gap, answers=answers, problem=problem)
