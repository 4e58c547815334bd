"""Takes what ranks sent of each step: joins it, has it scored, answers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from monitor.core import BatchError, Monitor
from monitor.losses import gap_of_batch
from monitor.records import Gap, LossReason
from service.daemon.audit.records import Event
from service.daemon.canary_watch import CanaryWatch
from service.daemon.drain import Drain, missing_gap
from service.daemon.engines import Engines
from service.daemon.items import BatchItem, GapItem
from service.daemon.joining import Joining, StepItem, record_of, refused
from service.daemon.swaps import Swaps
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_MAX_LEAP = 1 << 20  # Steps that a message may be away from those before.

log = logging.getLogger("innerwatch.ingest")


class Steps:
    """
    The ingest thread's, as are all that it is made of.

    Attributes:
        joining: What waits for other ranks.

        last_batch_at: When the last step was scored, in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        monitor: Monitor,
        engines: Engines,
        swaps: Swaps,
        canaries: CanaryWatch,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.joining = Joining(monitor.sets)
        self.last_batch_at = 0.0
        self._monitor = monitor
        self._engines = engines
        self._swaps = swaps
        self._canaries = canaries
        self._wall_clock = wall_clock
        self._clock = clock

    def open(self, engine: str, ranks: Sequence[int], drain: Drain) -> None:
        """Note which ranks an engine has."""
        for item in self.joining.open(engine, ranks):
            self._observe(item, drain)

    def give_up(self, since: float, drain: Drain) -> None:
        """Count as lost what has waited for another rank from *since* or before."""
        for item in self.joining.give_up(since):
            self._observe(item, drain)

    def end_engine(self, engine: str, drain: Drain) -> None:
        """Count as lost what waited of an engine that is gone."""
        for item in self.joining.close(engine):
            self._observe(item, drain)

    def take(self, item: StepItem, drain: Drain) -> None:
        """Take what one rank sent, and with it what it makes whole."""
        record = record_of(item)
        now = self._clock()
        self._engines.hear(record.engine, record.rank, now)
        if isinstance(item, BatchItem):
            digest = item.batch.bank_digest
            drain.entries.events += self._swaps.hear(item.answers, digest)
        item = self._believable(item)
        if self._is_repeated(item):
            drain.n_repeated += 1
            self._acknowledge(item, drain)
            return
        for whole in self.joining.put(item, now):
            self._observe(whole, drain)

    def _believable(self, item: StepItem) -> StepItem:
        """Refuse a step that is far from the engine's others, on either side."""
        step, problem = _step_of(item), _problem_of(item)
        known = self._engines.last_steps.get(record_of(item).engine, 0)
        is_far = step > 0 and abs(step - known) > _MAX_LEAP
        # The first may be any, unless it makes no sense besides: a daemon that starts
        # anew finds engines that run. Believed, it would make real steps look repeated.
        if is_far and (known or problem):
            problem = problem or f"step: expected about {known}, got {step}"
            return refused(item, problem)
        return item

    def _is_repeated(self, item: StepItem) -> bool:
        # Step 0 of a gap stands for a step that nobody knows.
        engine, step = record_of(item).engine, _step_of(item)
        is_known = step > 0 or isinstance(item, BatchItem)
        return is_known and self._monitor.is_repeated(engine, step)

    def _acknowledge(self, item: StepItem, drain: Drain, refusal: str = "") -> None:
        answer = pb.StreamResponse(acknowledged_step=_step_of(item), refusal=refusal)
        drain.answers.append((item.answers, answer))

    def _observe(self, item: StepItem, drain: Drain) -> None:
        """Take a step that every rank has told of."""
        if isinstance(item, GapItem):
            self._take_gap(item, drain)
            return
        batch = self._monitor.sets.cut(item.batch)
        began = self._clock()
        try:
            drain.entries.flags += self._monitor.observe(batch)
        except BatchError as error:
            gap = gap_of_batch(batch, LossReason.REFUSED, item.n_missing)
            said = GapItem(gap=gap, answers=item.answers, problem=str(error))
            self._take_gap(said, drain)
            return
        self._canaries.observe(self._monitor.sets, batch)
        drain.scoring_seconds.append(self._clock() - began)
        self._engines.see_step(batch.engine, batch.step)
        self.last_batch_at = self._wall_clock()
        if item.n_missing:
            self._record_gap(missing_gap(item), "rows missing from a batch", drain)
        drain.finish(self._monitor.end(batch.engine, batch.finished))
        if item.captured_at > 0:
            drain.captured_at.append(item.captured_at)
        self._acknowledge(item, drain)

    def _take_gap(self, item: GapItem, drain: Drain) -> None:
        gap, problem = item.gap, item.problem
        self._engines.see_step(gap.engine, gap.last_step)
        try:
            self._record_gap(gap, problem, drain)
        except BatchError as error:
            # Its ranges can not be believed; its tokens are still lost.
            problem = problem or str(error)
            self._record_gap(replace(gap, lost=()), problem, drain)
        if problem:
            drain.n_refused += 1
            event = Event(kind="batch_refused", detail=problem, engine=gap.engine)
            drain.entries.events.append(event)
            log.warning("refused from engine %s: %s", gap.engine, problem)
        self._acknowledge(item, drain, problem)

    def _record_gap(self, gap: Gap, detail: str, drain: Drain) -> None:
        drain.finish(self._monitor.record_gap(gap))
        drain.entries.gaps.append((gap, detail))


def _step_of(item: StepItem) -> int:
    return item.batch.step if isinstance(item, BatchItem) else item.gap.last_step


def _problem_of(item: StepItem) -> str:
    return "" if isinstance(item, BatchItem) else item.problem
