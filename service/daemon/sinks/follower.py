# Rule 1: nothing here is called by the ingest thread but `announce`, which returns at
# once whatever the receiver does.
#
# Rule 2: flags are read from the record, in order, and never held in memory: a slow or
# dead receiver costs a number that rises, and a restart loses none of them.
#
# Rule 3: a flag is delivered, or counted as left out with a reason.
"""Follows the record with a thread of its own, and delivers what it finds."""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.daemon.audit.opening import AuditError
from service.daemon.drills import Delivery, Drill, Drills
from service.daemon.sinks.backlog import Backlog
from service.daemon.sinks.metrics import Failure, Omission, SinkMetrics
from service.daemon.sinks.notice import Notice, notice_of_drill

_PAGE = 64  # Flags read at a time.
_LOOK_SECONDS = 1.0
_FIRST_DELAY_SECONDS, _LAST_DELAY_SECONDS = 0.25, 60.0
_MOST_DRILLS = 64

log = logging.getLogger("innerwatch.sinks")


class DeliveryError(Exception):
    """An attempt failed and may be repeated, not before *after_seconds* are over."""

    def __init__(self, reason: Failure, text: str, after_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.reason = reason
        self.after_seconds = after_seconds


class RefusedError(Exception):
    """The receiver will not have this notice, however often it is sent. One line."""


class Receiver(Protocol):
    """Where a sink's notices go. Used by one thread."""

    def deliver(self, notice: Notice) -> None:
        """
        Return when the receiver has it, within a bounded time.

        Raises:
            DeliveryError: It may be tried again, and may have arrived all the same.
            RefusedError: It will never be taken.
        """
        ...

    def close(self) -> None:
        """Let go of what `deliver` opened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkLimits:
    """
    Attributes:
        queue_flags: Flags that may wait; beyond them the oldest are left out.

        give_up_seconds: How long one flag is tried before the next one is.
    """

    queue_flags: int
    give_up_seconds: float


class FollowerSink:
    """
    One sink.

    Attributes:
        name: Its label in the metrics.
    """

    def __init__(
        self,
        name: str,
        receiver: Receiver,
        directory: Path,
        limits: SinkLimits,
        metrics: SinkMetrics,
        drills: Drills,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._receiver = receiver
        self._backlog = Backlog(directory, name)
        self._limits = limits
        self._metrics = metrics
        self._drills = drills
        self._clock = clock
        self._wall_clock = wall_clock
        self._planted: deque[Drill] = deque(maxlen=_MOST_DRILLS)
        self._wake = threading.Event()
        self._is_over = threading.Event()
        self._page: deque[Notice] = deque()
        self._tried: tuple[int, float] = (0, 0.0)
        self._delay = _FIRST_DELAY_SECONDS
        self._retry_at = -float("inf")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        metrics.begin(name, self._thread.is_alive)

    def start(self) -> None:
        """
        Begin with what is recorded from now on, or where the last run stopped.

        Raises:
            AuditError: The record, or the place in it, can not be read or written.
        """
        try:
            n_waiting = self._backlog.count()
        except (sqlite3.Error, OSError) as error:
            raise AuditError(
                f"{self.name}: its place in the record: {error}"
            ) from error
        self._metrics.set_backlog(self.name, n_waiting)
        self._thread.start()

    def announce(self, drills: Sequence[Drill]) -> None:
        """Say that the record has more, and that *drills* were planted."""
        self._planted.extend(drills)
        self._wake.set()

    def end(self) -> None:
        """Begin no other delivery: what is not delivered is by the next run."""
        self._is_over.set()
        self._wake.set()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; False if that took longer than *seconds*."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._is_over.is_set():
            if self._planted:
                self._drill(self._planted.popleft())
                continue
            wait = self._retry_at - self._clock()
            if wait <= 0 and self._round():
                continue
            self._wake.wait(min(max(wait, 0.0), _LOOK_SECONDS) or _LOOK_SECONDS)
            self._wake.clear()
        self._receiver.close()
        self._backlog.close()

    def _round(self) -> bool:
        """Try the oldest flag; False if there is none, or it has to wait."""
        try:
            if not self._page:
                self._read_page()
            if not self._page:
                return False
            self._try(self._page[0])
        except (sqlite3.Error, OSError) as error:
            self._page.clear()
            self._backlog.close()
            self._fail(DeliveryError(Failure.RECORD, f"the record: {error}"))
            return False
        return True

    def _read_page(self) -> None:
        n_out = self._backlog.skip(self._limits.queue_flags)
        if n_out:
            self._metrics.count_omitted(self.name, Omission.BACKLOG_FULL, n_out)
            log.warning("%s: %d flags left out: too many wait", self.name, n_out)
        self._page.extend(self._backlog.next(_PAGE))
        self._metrics.set_backlog(self.name, self._backlog.count())

    def _try(self, notice: Notice) -> None:
        now = self._clock()
        if self._tried[0] != notice.flag_id:
            self._tried = (notice.flag_id, now)
        try:
            self._deliver(notice)
        except RefusedError as error:
            log.warning("%s: flag %d refused: %s", self.name, notice.flag_id, error)
            self._metrics.count_omitted(self.name, Omission.REFUSED)
        except DeliveryError as error:
            if self._clock() - self._tried[1] < self._limits.give_up_seconds:
                # What waits meanwhile may become too much: the page is read again.
                self._page.clear()
                self._fail(error)
                return
            log.warning("%s: flag %d given up: %s", self.name, notice.flag_id, error)
            self._metrics.count_failure(self.name, error.reason)
            self._metrics.count_omitted(self.name, Omission.GAVE_UP)
        else:
            delay = self._wall_clock() - notice.flagged_at
            self._metrics.count_delivered(self.name, delay)
        self._go_on(notice)

    def _deliver(self, notice: Notice) -> None:
        try:
            self._receiver.deliver(notice)
        except (DeliveryError, RefusedError):
            raise
        except Exception as error:
            # Whatever a receiver answers, it does not end the sink.
            text = f"{type(error).__name__}: {error}"
            raise DeliveryError(Failure.ANSWER, text) from error

    def _go_on(self, notice: Notice) -> None:
        self._delay = _FIRST_DELAY_SECONDS
        self._page.popleft()
        self._backlog.advance(notice.flag_id)
        if not self._page:
            self._metrics.set_backlog(self.name, self._backlog.count())

    def _fail(self, error: DeliveryError) -> None:
        self._metrics.count_failure(self.name, error.reason)
        wait = max(self._delay, min(error.after_seconds, _LAST_DELAY_SECONDS))
        log.warning("%s: tried again in %.3g s: %s", self.name, wait, error)
        self._retry_at = self._clock() + wait
        self._delay = min(2 * self._delay, _LAST_DELAY_SECONDS)

    def _drill(self, drill: Drill) -> None:
        problem = ""
        try:
            self._deliver(notice_of_drill(drill))
        except (DeliveryError, RefusedError) as error:
            problem = str(error)
        at = self._wall_clock()
        self._drills.note(
            drill.drill_id, Delivery(sink=self.name, at=at, problem=problem)
        )
