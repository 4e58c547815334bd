# Rule 1: one thread owns the monitor, the engines and the record. RPC threads only
# convert and enqueue.
#
# Rule 2: an item is acknowledged after the transaction that holds its flags, and
# counted in the metrics after it too.
#
# Rule 3: whatever goes wrong that is not the sender's fault ends the thread, and
# with it the process: going on without a record would be a lie.
"""Scores what engines sent, records what was found, then answers."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from monitor.core import Monitor
from service.config import IngestConfig
from service.daemon.audit.records import Event
from service.daemon.audit.store import AuditStore
from service.daemon.canary_watch import CanaryWatch
from service.daemon.detector_sets import SwapError
from service.daemon.drain import Drain, empty_gap
from service.daemon.engines import Engines
from service.daemon.item_queue import ItemQueue
from service.daemon.items import (
    BankRefusalItem,
    BatchItem,
    CanaryEnd,
    CanaryStart,
    ChangeItem,
    DrillItem,
    EraseItem,
    GapItem,
    GoodbyeItem,
    HeartbeatItem,
    HelloItem,
    Item,
    RecordItem,
    Stop,
    StoreItem,
    StreamEnd,
    StreamStart,
)
from service.daemon.joining import BriefItem
from service.daemon.metrics import Metrics
from service.daemon.recent import RecentCoverage
from service.daemon.saved_sets import save_sets
from service.daemon.signals import signals_of
from service.daemon.sinks.sinks import Sinks
from service.daemon.snapshot import Snapshot, snapshot_of
from service.daemon.state import State, StateName, decide
from service.daemon.steps import Steps
from service.daemon.swaps import Swaps
from service.request_ids import is_called
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_TICK_SECONDS = 0.25  # State is decided so often; far below blind_after_seconds.
_TOUCH_SECONDS = 5.0  # So precise is the time at which a killed daemon was alive.

log = logging.getLogger("innerwatch.ingest")


class Ingest:
    """
    The thread between the RPCs and the monitor.

    Attributes:
        failure: Why the thread ended, "" while it runs or when it was stopped.

        snapshot: What the operator's RPCs show; replaced, never changed.
    """

    def __init__(
        self,
        *,
        monitor: Monitor,
        swaps: Swaps,
        store: AuditStore,
        metrics: Metrics,
        sinks: Sinks,
        config: IngestConfig,
        directory: Path,
        on_state: Callable[[State], None],
        on_exit: Callable[[], None],
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monitor = monitor
        self._swaps = swaps
        self._store = store
        self._metrics = metrics
        self._sinks = sinks
        self._config = config
        self._directory = directory
        self._on_state = on_state
        self._on_exit = on_exit
        self._wall_clock = wall_clock
        self._clock = clock
        self._queue = ItemQueue(config.queue_batches)
        self._engines = Engines()
        self._recent = RecentCoverage(config.blind_after_seconds)
        self._canaries = CanaryWatch(wall_clock())
        self._steps = Steps(
            monitor=monitor,
            engines=self._engines,
            swaps=swaps,
            canaries=self._canaries,
            wall_clock=wall_clock,
            clock=clock,
        )
        self._ticked_at = self._touched_at = -float("inf")
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._state = State(name=StateName.WAITING, reason="starting")
        metrics.set_state(self._state)
        self.failure = ""
        self.snapshot: Snapshot = self._snapshot()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended."""
        return self._queue.is_closed

    def start(self) -> None:
        """Begin to take items."""
        self._thread.start()

    def put(self, item: Item) -> bool:
        """Enqueue *item*; False if nothing will be done with it. See `ItemQueue`."""
        return self._queue.put(item)

    def stop(self, seconds: float) -> bool:
        """Finish what is queued; False if that took longer than *seconds*."""
        if self._thread.is_alive():
            threading.Thread(target=self.put, args=(Stop(),), daemon=True).start()
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except (sqlite3.Error, OSError) as error:
            self.failure = f"the audit record can not be written: {error}"
            log.error(self.failure)
        except BaseException as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._queue.close()
            if self.failure:
                self._publish()
            self._on_exit()

    def _round(self) -> bool:
        """Do what is queued, commit, announce; False after a `Stop`."""
        items = self._queue.take(self._config.drain_batches)
        drain = Drain()
        for item in items:
            self._handlers[type(item)](self, item, drain)
        drain.finish(self._monitor.evict())
        now = self._clock()
        is_tick = now - self._ticked_at >= _TICK_SECONDS
        if is_tick:
            self._expire(now, drain)
            drain.entries.events += self._swaps.advance()
        self._commit(now, drain)
        self._save_sets()
        self._announce(drain)
        if is_tick:
            self._ticked_at = now
            self._recent.sample(now, self._monitor.totals.tokens)
            self._metrics.set_drift(self._swaps.live, self._monitor.drift)
            self._publish()
        return not any(isinstance(item, Stop) for item in items)

    def _commit(self, now: float, drain: Drain) -> None:
        if drain.entries:
            self._store.write(drain.entries, self._wall_clock())
        elif now - self._touched_at >= _TOUCH_SECONDS:
            self._store.touch(self._wall_clock())
        else:
            return
        self._touched_at = now

    def _save_sets(self) -> None:
        """After the record says so: what a daemon goes on with that is started now."""
        if self._swaps.is_changed:
            save_sets(self._directory, self._swaps.saved())
            self._swaps.is_changed = False
            self._metrics.set_detectors(self._swaps.live, self._swaps.loaded.values())

    def _snapshot(self) -> Snapshot:
        return snapshot_of(
            self._monitor,
            self._state,
            self._steps.last_batch_at,
            self._swaps.view(),
            n_engines=self._engines.n_connected,
        )

    def _announce(self, drain: Drain) -> None:
        self._metrics.set_totals(self._monitor.totals)
        self._metrics.count_flags(drain.entries.flags)
        self._metrics.count_summaries(drain.entries.summaries)
        for gap, _ in drain.entries.gaps:
            self._metrics.count_gap(gap.reason)
        self._metrics.count_messages(
            n_repeated=drain.n_repeated,
            n_refused=drain.n_refused,
            n_hellos_refused=drain.n_hellos_refused,
        )
        wall = self._wall_clock()
        lags = [wall - captured_at for captured_at in drain.captured_at]
        self._metrics.observe_times(lags, drain.scoring_seconds)
        for flag in drain.entries.flags:
            log.info("flag: %s on request %s", flag.detector, flag.request_id)
        drills = [item.drill for item in drain.drills]
        self._metrics.count_drills(drills)
        if drain.entries.flags or drills:
            self._sinks.announce(drills)
        for item in drain.drills:
            item.reply.put(wall)
        self.snapshot = self._snapshot()
        self._metrics.set_sets(self.snapshot.swaps)
        for answers, answer in drain.answers:
            answers.put(answer)
        for reply, said in drain.replies:
            reply.put(said)
        for asked, names in drain.erased:
            asked.put(names)
        for waiting, result in drain.results:
            if result is not None:
                self._metrics.count_canary(result, wall)
            waiting.put(result)

    def _publish(self) -> None:
        limit = self._config.blind_after_seconds
        signals = signals_of(
            self._engines,
            self._steps.joining,
            self._recent,
            self._canaries,
            failure=self.failure,
            now=self._clock(),
            blind_after_seconds=limit,
        )
        state = decide(signals, limit)
        if state.name is not self._state.name:
            log.info("state: %s: %s", state.name.value, state.reason)
        self._state = state
        self._metrics.set_state(state)
        self._metrics.set_gauges(
            n_queued=len(self._queue) + self._steps.joining.n_waiting,
            n_live_requests=self._monitor.n_live_requests,
            n_engines=self._engines.n_connected,
            last_batch_at=self._steps.last_batch_at,
        )
        self.snapshot = self._snapshot()
        self._on_state(state)

    def _expire(self, now: float, drain: Drain) -> None:
        """Finish what nobody will finish: lost engines' requests, and idle ones."""
        grace = self._config.reconnect_grace_seconds
        self._steps.give_up(now - grace, drain)
        for gone in self._engines.take_gone(now - grace):
            self._steps.end_engine(gone.name, drain)
            drain.finish(self._monitor.end_engine(gone.name))
            if not gone.said_goodbye:
                # What it had not sent, nobody can count: the record says when.
                wall = self._wall_clock()
                gap = empty_gap(gone.name, wall - (now - gone.last_heard), wall)
                drain.entries.gaps.append((gap, "the engine broke off"))
        for engine, step in self._engines.last_steps.items():
            idle = self._config.max_idle_steps
            for request_id in self._monitor.stale(engine, step - idle):
                drain.finish([self._monitor.abandon(engine, request_id)])

    def _on_step(self, item: BatchItem | GapItem, drain: Drain) -> None:
        self._steps.take(item, drain)

    def _on_heartbeat(self, item: HeartbeatItem, drain: Drain) -> None:
        self._engines.prove(item.engine, item.rank, item.is_proven)
        self._hear(item)
        drain.entries.events += self._swaps.hear(item.answers, item.bank_digest)
        self._answer(item, drain)

    def _on_goodbye(self, item: GoodbyeItem, drain: Drain) -> None:
        self._hear(item)
        self._engines.say_goodbye(item.engine, item.rank)
        self._answer(item, drain)
        event = Event(kind="goodbye", detail="", engine=item.engine)
        drain.entries.events.append(event)

    def _on_bank_refusal(self, item: BankRefusalItem, drain: Drain) -> None:
        self._hear(item)
        drain.entries.events += self._swaps.refused(item)
        self._answer(item, drain)

    def _hear(self, item: BriefItem) -> None:
        self._engines.hear(item.engine, item.rank, self._clock())

    def _answer(self, item: BriefItem, drain: Drain) -> None:
        """One answer for each request, in order: the sender counts them."""
        if self._steps.joining.holds_back(item):
            return
        step = self._engines.last_steps[item.engine]
        drain.answers.append((item.answers, pb.StreamResponse(acknowledged_step=step)))

    def _on_change(self, item: ChangeItem, drain: Drain) -> None:
        said = ""
        try:
            drain.entries.events += self._swaps.change(item)
        except SwapError as error:
            said = str(error)
        drain.replies.append((item.reply, said))

    def _on_hello(self, item: HelloItem, drain: Drain) -> None:
        kind, detail = "hello", item.detail
        if item.refusal:
            kind, detail = "hello_refused", item.refusal
            drain.n_hellos_refused += 1
            # It tries again twice a second: once is enough for the record.
            if not self._engines.refuse(item.engine, item.refusal, self._clock()):
                return
        else:
            self._engines.accept(item.engine)
            self._metrics.see_engine(item.engine, item.model_name)
        log.info("engine %s: %s: %s", item.engine, kind, detail)
        event = Event(kind=kind, detail=detail, engine=item.engine)
        drain.entries.events.append(event)

    def _on_stream_start(self, item: StreamStart, drain: Drain) -> None:
        self._steps.open(item.engine, item.ranks, drain)
        self._engines.connect(item.engine, item.rank, self._clock())
        drain.entries.events += self._swaps.open_stream(item)

    def _on_stream_end(self, item: StreamEnd, drain: Drain) -> None:
        if item.engine:
            self._engines.disconnect(item.engine, item.rank, self._clock())
        drain.entries.events += self._swaps.close_stream(item.answers)
        drain.answers.append((item.answers, None))

    def _on_canary_start(self, item: CanaryStart, drain: Drain) -> None:
        item.reply.put(self._canaries.begin(self._swaps.live, item.name))

    def _on_canary_end(self, item: CanaryEnd, drain: Drain) -> None:
        result, detail = self._canaries.end(item.problem)
        drain.results.append((item.reply, result))
        self._monitor.is_in_doubt = bool(self._canaries.failure)
        if detail:
            drain.entries.events.append(Event(kind="canaries_failed", detail=detail))
        if gap := self._canaries.gap(result, self._wall_clock()):
            for engine in self._engines.last_steps:
                self._monitor.doubt(engine)
            drain.entries.gaps.append((gap, detail))

    def _on_drill(self, item: DrillItem, drain: Drain) -> None:
        drain.entries.events.append(Event(kind="drill", detail=item.drill.drill_id))
        drain.drills.append(item)

    def _on_record(self, item: RecordItem, drain: Drain) -> None:
        drain.entries.add(item.entries)
        drain.replies.append((item.reply, ""))

    def _on_store(self, item: StoreItem, drain: Drain) -> None:
        item.reply.put(item.act(self._store, self._wall_clock()))

    def _on_erase(self, item: EraseItem, drain: Drain) -> None:
        names = [n for n in self._monitor.live_ids() if is_called(n, item.name)]
        for name in names:
            self._store.erase(name, self._wall_clock(), by=item.by, is_running=True)
        drain.erased.append((item.reply, names))

    def _on_stop(self, item: Stop, drain: Drain) -> None:
        drain.finish(abandoned := self._monitor.end_all())
        detail = f"{len(abandoned)} live requests abandoned"
        drain.entries.events.append(Event(kind="stop", detail=detail))

    _handlers: dict[type, Callable[..., None]] = {  # noqa: RUF012
        BatchItem: _on_step,
        GapItem: _on_step,
        HeartbeatItem: _on_heartbeat,
        GoodbyeItem: _on_goodbye,
        HelloItem: _on_hello,
        StreamStart: _on_stream_start,
        StreamEnd: _on_stream_end,
        BankRefusalItem: _on_bank_refusal,
        ChangeItem: _on_change,
        CanaryStart: _on_canary_start,
        CanaryEnd: _on_canary_end,
        DrillItem: _on_drill,
        RecordItem: _on_record,
        StoreItem: _on_store,
        EraseItem: _on_erase,
        Stop: _on_stop,
    }
