"""Puts what people did into the record, through the one thread that writes it."""

import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from service.daemon.audit.records import Entries
from service.daemon.ingest import Ingest
from service.daemon.items import RecordItem

_LOOK_SECONDS = 0.25


class RecordError(RuntimeError):
    """It is not in the record, so it does not happen. One line."""


def record(ingest: Ingest, entries: Entries, *, timeout_seconds: float = 10.0) -> None:
    """
    Return when *entries* are in the record, synced.

    Raises:
        RecordError: The daemon stops, or took longer than *timeout_seconds*.
    """
    reply: SimpleQueue[str] = SimpleQueue()
    deadline = time.monotonic() + timeout_seconds
    if ingest.put(RecordItem(entries=entries, reply=reply)):
        while time.monotonic() < deadline and not ingest.is_over:
            with suppress(Empty):
                if problem := reply.get(timeout=_LOOK_SECONDS):
                    raise RecordError(problem)
                return
    raise RecordError("the daemon is stopping or busy: nothing was recorded")
