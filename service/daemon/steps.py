"""Takes what ranks sent of each step: joins it, has it scored, answers."""

import logging
from collections.abc import Callable
from dataclasses import replace

from monitor.core import BatchError, Monitor
from monitor.records import Gap
from service.daemon.audit.records import Event
from service.daemon.canary_watch import CanaryWatch
from service.daemon.drain import Drain, missing_gap
from service.daemon.engines import Engines
from service.daemon.items import BatchItem, GapItem
from service.daemon.joining import Joining, StepItem
from service.daemon.refusals import gap_of_batch
from service.daemon.swaps import Swaps
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_MAX_LEAP = 1 << 20  # Steps that a malformed message may claim to be ahead.

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

    def end_engine(self, engine: str, drain: Drain) -> None:
        """Count as lost what waited of an engine that is gone."""
        for item in self.joining.close(engine):
            self._observe(item, drain)

    def take(self, item: StepItem, drain: Drain) -> None:
        """Take what one rank sent, and with it what it makes whole."""
        record = item.batch if isinstance(item, BatchItem) else item.gap
        self._engines.hear(record.engine, record.rank, self._clock())
        if isinstance(item, BatchItem):
            digest = item.batch.bank_digest
            drain.entries.events += self._swaps.hear(item.answers, digest)
        else:
            item = self._believable(item)
        if self._is_repeated(item):
            drain.n_repeated += 1
            self._acknowledge(item, drain)
            return
        for whole in self.joining.put(item):
            self._observe(whole, drain)

    def _believable(self, item: GapItem) -> GapItem:
        gap = item.gap
        known = self._engines.last_steps[gap.engine]
        if item.problem and gap.last_step > known + _MAX_LEAP:
            # Believed, it would make every real step after it look repeated.
            return replace(item, gap=replace(gap, first_step=0, last_step=0))
        return item

    def _is_repeated(self, item: StepItem) -> bool:
        if isinstance(item, BatchItem):
            engine, step = item.batch.engine, item.batch.step
            return self._monitor.is_repeated(engine, step)
        engine, step = item.gap.engine, item.gap.last_step
        # Step 0 stands for a step that nobody knows.
        return step > 0 and self._monitor.is_repeated(engine, step)

    def _acknowledge(self, item: StepItem, drain: Drain, refusal: str = "") -> None:
        step = item.batch.step if isinstance(item, BatchItem) else item.gap.last_step
        answer = pb.StreamResponse(acknowledged_step=step, refusal=refusal)
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
            gap = gap_of_batch(batch, item.n_missing)
            refused = GapItem(gap=gap, answers=item.answers, problem=str(error))
            self._take_gap(self._believable(refused), drain)
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
