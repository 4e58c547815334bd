"""Two ranks of one engine, whatever becomes of their connections: the books balance."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from monitor.losses import joined_gap
from monitor.ranks import Group, RankJoin, Told, joined
from monitor.records import Gap, LossReason, LostRange, StepBatch
from monitor.set_scores import only
from tests.monitor.builders import EARLY, ENGINE, LATE, Rows, batch, monitor, quiet

PLACES = (EARLY, LATE)
_WINDOW = 4
"""Entries that a sender has unanswered; a real one 256."""


@dataclass
class Sender:
    """One rank's outbox and connection: what is not acknowledged is sent again."""

    rank: int
    entries: deque[StepBatch | Gap] = field(default_factory=deque)
    n_sent: int = 0

    def lose(self, step: StepBatch) -> None:
        """As the outbox: what was not sent yet grows, else a gap begins."""
        lost = LostRange(
            request_id=step.request_ids[0],
            first_position=int(step.first_positions[0]),
            n_tokens=len(step.token_ids),
        )
        last = self.entries[-1] if len(self.entries) > self.n_sent else None
        if isinstance(last, Gap):
            self.entries[-1] = replace(
                last,
                last_step=step.step,
                n_tokens=last.n_tokens + lost.n_tokens,
                lost=(*last.lost, lost),
            )
            return
        self.entries.append(
            Gap(
                engine=ENGINE,
                rank=self.rank,
                reason=LossReason.BUFFER_FULL,
                first_step=step.step,
                last_step=step.step,
                n_tokens=lost.n_tokens,
                lost=(lost,),
            )
        )


class Stages(RuleBasedStateMachine):
    """An engine of two stages that makes steps of one request."""

    @initialize()
    def begin(self) -> None:
        self.monitor = monitor()
        self.join: RankJoin[Callable[[], None]] = RankJoin((0, 1))
        self.senders = [Sender(0), Sender(1)]
        self.step = self.position = self.n_lost_by_any = 0

    @rule(n=st.integers(1, 3), lost=st.sets(st.sampled_from([0, 1])))
    def engine_steps(self, n: int, lost: set[int]) -> None:
        """Every stage has the step's rows, or its outbox has no room for them."""
        self.step += 1
        whole = batch(Rows("r", self.position, quiet(n)), step=self.step)
        self.position += n
        self.n_lost_by_any += n * bool(lost)
        for sender in self.senders:
            place = PLACES[sender.rank]
            own = {place: slice(0, whole.columns[place].shape[1])}
            part = replace(only(whole, own), rank=sender.rank)
            if sender.rank in lost:
                sender.lose(part)
            else:
                sender.entries.append(part)

    @rule(rank=st.sampled_from([0, 1]), n=st.integers(1, _WINDOW))
    def sends(self, rank: int, n: int) -> None:
        """As many as its window has room for."""
        sender = self.senders[rank]
        for _ in range(n):
            # Answered, some have left meanwhile.
            if sender.n_sent >= min(len(sender.entries), _WINDOW):
                return
            record = sender.entries[sender.n_sent]
            sender.n_sent += 1
            self.receive(rank, record)

    @rule(rank=st.sampled_from([0, 1]))
    def connects_again(self, rank: int) -> None:
        """All that is not acknowledged is sent again."""
        self.senders[rank] = Sender(rank, self.senders[rank].entries)

    def receive(self, rank: int, record: StepBatch | Gap) -> None:
        """As the ingest thread does."""
        sender = self.senders[rank]

        def answer() -> None:
            # Of a connection of before nobody counts any more.
            if self.senders[rank] is sender:
                sender.entries.popleft()
                sender.n_sent -= 1

        last = record.step if isinstance(record, StepBatch) else record.last_step
        if self.monitor.is_repeated(ENGINE, last):
            answer()
            return
        self.join.put(rank, Told(record=record, carried=[answer]))
        for group in self.join.ready():
            self.take(group)

    def take(self, group: Group[Callable[[], None]]) -> None:
        """Score a whole step, count any other as lost, and answer."""
        records = [told.record for told in group.told]
        if group.is_whole:
            self.monitor.observe(
                joined([r for r in records if isinstance(r, StepBatch)])
            )
        else:
            self.monitor.record_gap(joined_gap(records))
        for told in group.told:
            for answer in told.carried:
                answer()

    @invariant()
    def balances(self) -> None:
        """Every token is counted once; none that no stage lost is lost."""
        tokens = self.monitor.totals.tokens
        assert tokens.is_balanced
        assert tokens.n_expected <= self.position
        assert sum(tokens.n_lost.values()) <= self.n_lost_by_any

    def teardown(self) -> None:
        """What is left is sent, to its end: nothing stalls, and nothing is missing."""
        if not hasattr(self, "senders"):
            return
        for _ in range(3 * self.step + 3):
            for sender in list(self.senders):
                self.sends(sender.rank, _WINDOW)
        assert not any(sender.entries for sender in self.senders)
        tokens = self.monitor.totals.tokens
        assert tokens.n_expected == self.position
        assert sum(tokens.n_lost.values()) == self.n_lost_by_any


TestStages = Stages.TestCase
TestStages.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
