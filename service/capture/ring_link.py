# Rule 1: nothing here waits, and nothing runs on the engine's thread: it has put its
# step into the outbox and gone on.
#
# Rule 2: a ring that is broken is left for good, with the reason in `problem`. What
# was not acknowledged is still in the outbox, and goes the next way there is.
"""Carries the outbox through the daemon's ring."""

import os
import socket
from collections import deque

from service.address import parse_address
from service.capture.messages import describe_batch, gap_message
from service.capture.outbox import Entry, Outbox
from service.capture.step import Step
from service.ring.handover import (
    new_socket,
    receive_ring,
    request_packet,
    socket_path,
)
from service.ring.memory import map_sealed
from service.ring.writer import RingWriter
from service.ring_record import record_parts
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_HANDOVER_SECONDS = 5.0
_NO_LIMIT = 1 << 62  # The ring's memory is what limits it.


def open_ring(address: str, engine: str, rank: int) -> tuple[RingWriter, socket.socket]:
    """
    Ask the daemon at *address* for a ring; return it and the connection to wake it.

    Raises:
        ValueError: There is none to be had, or what came is none; one line says why.
        OSError: The daemon hands out no rings, or does not answer.
    """
    path = parse_address(address).path
    if path is None:
        raise ValueError(f"a ring needs a unix socket, got {address!r}")
    connection = new_socket()
    try:
        connection.settimeout(_HANDOVER_SECONDS)
        connection.connect(str(socket_path(path)))
        connection.send(request_packet(engine, rank))
        fd, capacity, ring_id = receive_ring(connection)
        try:
            memory = map_sealed(fd, capacity)
        finally:
            os.close(fd)
        connection.setblocking(False)
        return RingWriter(memory, capacity=capacity, ring_id=ring_id), connection
    except BaseException:
        connection.close()
        raise


class RingLink:
    """
    One ring, and what of the outbox is in it.

    Attributes:
        problem: Why nothing goes through it any more, "" while it does.

        is_broken: The ring is the reason, and not that the daemon is gone.

        last_step: Number of the last step that went in.

        is_proven: Whether the taps wrote every row of the last that had any.

        n_refused: Records that the daemon took and refused.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        hook_points: tuple[str, ...],
        writer: RingWriter,
        connection: socket.socket,
    ) -> None:
        self._outbox = outbox
        self._stream = 0
        self._hook_points = hook_points
        self._writer = writer
        self._connection = connection
        self._in_ring: deque[bool] = deque()  # Whether each record is an entry.
        self._entry: Entry | None = None
        self._parts: list[bytes | memoryview] | None = None
        self.problem = ""
        self.is_broken = False
        self.last_step: int | None = None
        self.is_proven = True  # By the trial step, or there were no sender.
        self.n_refused = 0

    def begin(self, stream: int) -> None:
        """Carry what *stream* of the outbox holds; before the first `pump`."""
        self._stream = stream

    def pump(self) -> bool:
        """
        Drop what was acknowledged; write the next entry, if it is complete.

        What finds no room, or still comes from the device, waits for the next call.

        Returns:
            Whether one was written.
        """
        if self.problem:
            return False
        try:
            self._settle()
            if not self._write_next():
                return False
            if self._writer.wake():
                self._wake()
        except OSError as error:
            self.problem = f"the daemon is gone: {error.strerror}"
        except Exception as error:  # noqa: BLE001 - see rule 2
            self.problem, self.is_broken = f"{type(error).__name__}: {error}", True
        return not self.problem

    def beat(self, heartbeat: pb.StreamRequest, *, is_idle: bool) -> None:
        """
        Say *heartbeat* behind all that was written, if there is room.

        The daemon hears of a bank by each way that an engine has to it; by the ring
        not before the batches that were made with the one before. Of an engine that
        is not idle its batches say it.
        """
        said = pb.StreamRequest()
        said.CopyFrom(heartbeat)
        if not is_idle:
            said.heartbeat.bank_digest = ""
        if self.problem or self._entry is not None:
            return
        try:
            if self._writer.push(record_parts(said, ())):
                self._in_ring.append(False)
        except ValueError as error:
            self.problem, self.is_broken = str(error), True

    def close(self) -> None:
        """End the connection: the daemon reads what is in the ring, and ends too."""
        self.problem = self.problem or "closed"
        self._connection.close()

    def is_alive(self) -> bool:
        """Look whether the daemon still holds its end; leaves a problem if not."""
        try:
            has_gone = not self._connection.recv(1)
        except BlockingIOError:
            has_gone = False
        except OSError:
            has_gone = True
        if self._writer.is_given_up:
            self.problem, self.is_broken = "the daemon found the ring broken", True
        elif has_gone and not self.problem:
            self.problem = "the daemon is gone"
        return not self.problem

    def _settle(self) -> None:
        for _ in range(self._writer.take_acknowledged()):
            if self._in_ring.popleft():
                self._outbox.acknowledge(self._stream)
        self.n_refused = self._writer.n_refused

    def _write_next(self) -> bool:
        if self._entry is None:
            self._entry = self._outbox.next_entry(self._stream, _NO_LIMIT, 0.0)
        entry = self._entry
        if entry is None or not _is_complete(entry):
            return False
        if self._parts is None:
            self._parts = self._parts_of(entry)
        if not self._writer.push(self._parts):
            return False
        self._in_ring.append(True)
        if isinstance(entry, Step):
            self.last_step = entry.step
        self._entry = self._parts = None
        return True

    def _parts_of(self, entry: Entry) -> list[bytes | memoryview]:
        request = pb.StreamRequest()
        if isinstance(entry, Step):
            arrays = describe_batch(request.batch, entry, self._hook_points)
            if entry.n_rows:
                self.is_proven = entry.is_written
            return record_parts(request, arrays)
        request.gap.CopyFrom(gap_message(entry))
        return record_parts(request, ())

    def _wake(self) -> None:
        try:
            self._connection.send(b"\x01")
        except BlockingIOError:
            return  # So many wake-ups wait that one more says nothing.


def _is_complete(entry: Entry) -> bool:
    if not isinstance(entry, Step) or entry.copied is None:
        return True
    return bool(entry.copied.query())
