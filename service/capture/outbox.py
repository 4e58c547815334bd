"""The bounded buffer between the engine's thread and the sender's.

Rule 1: `put` and `lose` never wait for anything but a lock held for microseconds.

Rule 2: order is kept. What was lost is an entry between the batches around it, so that
the daemon hears of it where it happened.

Rule 3: an entry leaves only when the daemon has acknowledged it. After a broken
connection it is sent again; the daemon knows what it has seen.
"""

import threading
from collections import deque
from dataclasses import dataclass, field

from service.capture.arena import Piece
from service.capture.rows import Rows
from service.capture.step import Step

_MAX_LISTED = 16384
"""Ranges, and ends, that one gap lists; what is beyond is counted, not named."""


@dataclass(slots=True, kw_only=True)
class Loss:
    """
    Neighbouring steps that were lost for one reason.

    *ranges* are each request's latest positions in a row, as [first, end); *more* are
    its earlier ones.
    """

    reason: int
    first_step: int
    last_step: int
    began_at: float
    ended_at: float
    n_tokens: int = 0
    ranges: dict[str, list[int]] = field(default_factory=dict)
    more: list[tuple[str, list[int]]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    n_finished: int = 0
    pieces: list[Piece] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Count *step*'s rows as lost."""
        if step.piece is not None:
            # Given back in turn: what is before it in the outbox has earlier ones.
            self.pieces.append(step.piece)
        self.last_step, self.ended_at = step.step, step.captured_at
        self.n_tokens += step.n_rows_expected
        self.n_finished += len(step.finished)
        for request_id in step.finished:
            # One whose range is listed has to end, or it would stay live for ever.
            if request_id in self.ranges or len(self.finished) < _MAX_LISTED:
                self.finished.append(request_id)
        if step.rows is not None:
            self._add_ranges(step.rows)

    def _add_ranges(self, rows: Rows) -> None:
        ids, drafts = rows.request_ids, rows.first_drafts
        firsts = rows.first_positions.tolist()
        ends = (rows.first_positions + rows.n_rows).tolist()
        if drafts:
            # A draft is no token of the request until it is kept: then it is missed by
            # the next step's first position.
            kept = [
                max(first, min(end, drafts.get(request_id, end)))
                for request_id, first, end in zip(ids, firsts, ends, strict=True)
            ]
            self.n_tokens -= sum(ends) - sum(kept)
            ends = kept
        known_range = self.ranges.get
        for request_id, first, end in zip(ids, firsts, ends, strict=True):
            known = known_range(request_id)
            # Of hundreds of requests, each step, while a daemon is away: no more than
            # this if they go on where they were.
            if known is not None and known[1] == first:
                known[1] = end
            elif first == end:
                continue  # A part of a step, of drafts only.
            elif len(self.ranges) + len(self.more) < _MAX_LISTED:
                if known is not None:
                    self.more.append((request_id, known))
                self.ranges[request_id] = [first, end]


Entry = Step | Loss


class Outbox:
    """Steps and losses that are not acknowledged yet, at most *limit_bytes* of them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._n_waiting = 0  # For a change; a ring's sender does not wait.
        self._entries: deque[Entry] = deque()
        self._n_sent = 0
        self._n_bytes = 0
        self._stream = 0

    def has_room(self, n_bytes: int) -> bool:
        """Return whether a step of *n_bytes* would be taken."""
        return self._n_bytes + n_bytes <= self._limit_bytes

    def put(self, step: Step, reason_if_full: int) -> None:
        """Append *step*; without room for it, as lost for *reason_if_full*."""
        n_bytes = step.n_bytes
        if not self.has_room(n_bytes):
            self.lose(step, reason_if_full)
            return
        with self._lock:
            self._entries.append(step)
            self._n_bytes += n_bytes
            if self._n_waiting:
                self._changed.notify_all()

    def lose(self, step: Step, reason: int) -> None:
        """Append *step* as lost for *reason*, merged with a loss just before it."""
        with self._changed:
            last = self._entries[-1] if self._entries else None
            is_open = len(self._entries) > self._n_sent
            if not (isinstance(last, Loss) and is_open and last.reason == reason):
                last = Loss(
                    reason=reason,
                    first_step=step.step - step.n_steps + 1,
                    last_step=step.step,
                    began_at=step.captured_at,
                    ended_at=step.captured_at,
                )
                self._entries.append(last)
            last.add(step)
            self._changed.notify_all()

    def next_entry(
        self, stream: int, max_unacknowledged: int, timeout_seconds: float
    ) -> Entry | None:
        """Return the next entry to send, or None when there is none in time."""
        with self._changed:
            if not self._can_send(stream, max_unacknowledged):
                self._n_waiting += 1
                self._changed.wait(timeout_seconds)
                self._n_waiting -= 1
            if not self._can_send(stream, max_unacknowledged):
                return None
            entry = self._entries[self._n_sent]
            self._n_sent += 1
            return entry

    def acknowledge(self, stream: int) -> None:
        """Forget the oldest entry that *stream* sent."""
        with self._changed:
            if stream != self._stream or not self._n_sent:
                return
            entry = self._entries.popleft()
            self._n_sent -= 1
            if isinstance(entry, Loss):
                pieces = entry.pieces
            else:
                self._n_bytes -= entry.n_bytes
                pieces = [] if entry.piece is None else [entry.piece]
            for piece in pieces:
                piece.give_back()
            self._changed.notify_all()

    def begin_stream(self) -> int:
        """
        Return the number of a new stream, which sends all that is unacknowledged.

        An earlier one gets and acknowledges nothing any more: it may still wait in
        `next_entry` when its connection is long gone.
        """
        with self._changed:
            self._stream += 1
            self._n_sent = 0
            self._changed.notify_all()
            return self._stream

    def is_empty(self) -> bool:
        """Return whether everything was acknowledged."""
        return not self._entries

    def _can_send(self, stream: int, max_unacknowledged: int) -> bool:
        if stream != self._stream:
            return False
        return self._n_sent < min(len(self._entries), max_unacknowledged)
