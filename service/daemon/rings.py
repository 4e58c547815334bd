# Rule 1: who may have a ring is decided before one is made: the peer's user id, and
# an engine that said Hello over gRPC.
#
# Rule 2: whatever a peer sends or writes ends at most its own ring. What it had not
# been told is done, it sends again by gRPC, so that nothing is lost with the ring.
#
# Rule 3: a ring counts as a stream of its engine, from its first record to its last.
"""Hands out rings and reads them: a socket beside the daemon's, a thread a ring."""

import logging
import os
import select
import socket
import stat
import struct
import threading
from collections import deque
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from service.daemon.capture_rpc import CaptureRPC
from service.daemon.exporter import ListenError
from service.daemon.sessions import Session
from service.ring.handover import (
    MAX_PACKET,
    HandoverError,
    new_socket,
    read_request,
    send_refusal,
    send_ring,
)
from service.ring.layout import RingError
from service.ring.memory import create
from service.ring.reader import RingReader
from service.ring_record import request_from_record
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import WireError

_MAX_RINGS = 32
_HANDOVER_SECONDS = 2.0
_STOP_SECONDS = 1.0
_MAX_WAKE_UPS = 64  # Taken at once; one that sends them without end gets no further.
# A writer that sees "asleep" a moment too late sends no wake-up: neither side has a
# fence. So long it then takes, and so often an idle reader looks.
_SLEEP_MILLISECONDS = 20
_WINDOW = 1024  # Records that were read and wait for their answer.
_FULL_SECONDS = 0.005
_FAULTS = (
    *("peer_uid", "peer_engine", "peer_request", "peer_silent", "peer_many"),
    *("memory", "header", "cursor", "sequence", "length", "checksum", "message"),
)

log = logging.getLogger("innerwatch.rings")


class PeerError(ValueError):
    """A peer gets no ring; *fault* is a label, the text is for it and for the log."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class RingAnswers:
    """
    Takes the answers to a ring's records, and counts them to its writer.

    One thread takes records and another answers them: each changes its own counts.
    """

    def __init__(self, reader: RingReader, max_bytes: int) -> None:
        self._reader = reader
        self._max_bytes = max_bytes
        self._n_answered = self._n_refused = 0
        self._n_taken = self._n_bytes_taken = self._n_bytes_answered = 0
        self._lengths: deque[int] = deque()

    @property
    def is_full(self) -> bool:
        """Whether so much waits for its answer that no more is to be taken."""
        n_bytes = self._n_bytes_taken - self._n_bytes_answered
        return self._n_taken - self._n_answered >= _WINDOW or n_bytes > self._max_bytes

    def take(self, n_bytes: int) -> None:
        """Note that a record was taken, which will be answered."""
        self._lengths.append(n_bytes)
        self._n_taken += 1
        self._n_bytes_taken += n_bytes

    def put(self, answer: pb.StreamResponse | None, /) -> None:
        """
        Acknowledge the next record.

        None is the end, and a bank an order: neither is a record's. Orders come to
        the engine by its gRPC stream.
        """
        if answer is None or answer.HasField("bank"):
            return
        self._n_answered += 1
        self._n_bytes_answered += self._lengths.popleft()
        self._n_refused += bool(answer.refusal)
        self._reader.acknowledge(self._n_answered, self._n_refused)


class Rings:
    """Listens when built, hands out when started."""

    def __init__(
        self,
        path: Path,
        capture: CaptureRPC,
        registry: CollectorRegistry,
        *,
        ring_bytes: int,
    ) -> None:
        """
        Bind *path*.

        Raises:
            ListenError: It cannot be bound.
        """
        self._path = path
        self._capture = capture
        self._ring_bytes = ring_bytes
        self._faults = Counter(
            "innerwatch_ring_faults",
            "Rings that were refused or given up.",
            ("fault",),
            registry=registry,
        )
        for fault in _FAULTS:
            self._faults.labels(fault)
        self._is_over = threading.Event()
        self._room = threading.Semaphore(_MAX_RINGS)
        self._lock = threading.Lock()
        self._turns: dict[tuple[str, int], _Turn] = {}
        _remove_socket(path)
        self._listener = new_socket()
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(_MAX_RINGS)
        except OSError as error:
            self._listener.close()
            raise ListenError(f"unix:{path}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._accept, name="rings", daemon=True)

    def start(self) -> None:
        """Begin to hand out."""
        self._thread.start()

    def stop(self) -> None:
        """Hand out no more, read no more, and remove the socket."""
        self._is_over.set()
        # A close alone does not wake who waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            turns = list(self._turns.values())
        for turn in turns:
            turn.stop()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Out of descriptors, or over: look which, and do not spin.
                self._is_over.wait(0.1)
                continue
            if not self._room.acquire(blocking=False):
                self._count("peer_many", f"{_MAX_RINGS} rings are in use")
                connection.close()
                continue
            threading.Thread(
                target=self._serve, args=(connection,), name="ring", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                turn = self._hand_over(connection)
            except PeerError as refused:
                self._count(refused.fault, str(refused))
                _say_no(connection, str(refused))
            except OSError as error:
                self._count("peer_silent", f"a peer went away: {error}")
            else:
                self._read(turn)
            finally:
                self._room.release()

    def _hand_over(self, connection: socket.socket) -> "_Turn":
        """Check the peer, and give it a ring."""
        connection.settimeout(_HANDOVER_SECONDS)
        try:
            # Before anything is answered: who still sends would not hear it.
            packet = connection.recv(MAX_PACKET)
        except TimeoutError:
            raise PeerError("peer_silent", "a peer said nothing") from None
        _check_peer(connection)
        try:
            engine, rank = read_request(packet)
        except HandoverError as error:
            raise PeerError("peer_request", str(error)) from error
        session = self._capture.session_of(engine, rank)
        if session is None:
            raise PeerError(
                "peer_engine", f"expected an engine that said Hello, got {engine!r:.80}"
            )
        try:
            fd, memory, ring_id = create(self._ring_bytes)
        except RingError as error:
            raise PeerError(error.fault, str(error)) from error
        reader = RingReader(memory, capacity=self._ring_bytes, ring_id=ring_id)
        turn = _Turn(engine, rank, session, reader, connection)
        with self._lock:
            earlier = self._turns.get((engine, rank))
        if earlier is not None:
            earlier.stop()
        try:
            send_ring(connection, fd, capacity=self._ring_bytes, ring_id=ring_id)
        finally:
            os.close(fd)
        # From here on each call says MSG_DONTWAIT; a time-out would make it wait first.
        connection.setblocking(True)
        with self._lock:
            self._turns[engine, rank] = turn
        return turn

    def _read(self, turn: "_Turn") -> None:
        answers = RingAnswers(turn.reader, self._ring_bytes)
        self._capture.begin(turn.session, answers)
        try:
            while not self._is_over.is_set():
                if answers.is_full:
                    # As behind gRPC's flow control: the ring fills, and then the
                    # outbox, which is what drops and counts.
                    self._is_over.wait(_FULL_SECONDS)
                    if turn.has_ended():
                        return
                    continue
                record = turn.next_record()
                if record is None:
                    return
                answers.take(len(record))
                request = request_from_record(record)
                if not self._capture.take(request, turn.engine, turn.rank, answers):
                    return
        except RingError as error:
            turn.reader.give_up()
            self._count(error.fault, f"engine {turn.engine}: {error}")
        except WireError as error:
            turn.reader.give_up()
            self._count("message", f"engine {turn.engine}: {error}")
        finally:
            self._capture.end(turn.engine, turn.rank, answers)
            turn.is_over.set()
            with self._lock:
                if self._turns.get((turn.engine, turn.rank)) is turn:
                    del self._turns[turn.engine, turn.rank]

    def _count(self, fault: str, text: str) -> None:
        self._faults.labels(fault).inc()
        log.warning("ring: %s", text)


class _Turn:
    """One ring in use: its reader, and the connection that its writer holds."""

    def __init__(
        self,
        engine: str,
        rank: int,
        session: Session,
        reader: RingReader,
        connection: socket.socket,
    ) -> None:
        self.engine, self.rank, self.session = engine, rank, session
        self.reader = reader
        self.is_over = threading.Event()
        self._connection = connection
        self._is_stopped = self._has_gone = False

    def stop(self) -> None:
        """Have the thread that reads end, and wait for it a moment."""
        self._is_stopped = True
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
        self.is_over.wait(_STOP_SECONDS)

    def has_ended(self) -> bool:
        """Whether it was stopped, or its writer is gone."""
        return self._is_stopped or _has_gone(self._connection)

    def next_record(self) -> bytes | None:
        """
        Wait for the next record; None when its writer is gone and all was read.

        Raises:
            RingError: The ring is broken.
        """
        while not self._is_stopped:
            record = self.reader.read()
            if record is not None:
                return record
            if self._has_gone:
                return None
            self._sleep()
        return None

    def _sleep(self) -> None:
        self.reader.sleep()
        if not self.reader.has_next():
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            poll.poll(_SLEEP_MILLISECONDS)
        self.reader.awake()
        # What it wrote before it went is read once more before the end is believed.
        self._has_gone = _has_gone(self._connection)


def _has_gone(connection: socket.socket) -> bool:
    """Take the wake-ups that wait; whether the connection has ended."""
    try:
        for _ in range(_MAX_WAKE_UPS):
            if not connection.recv(MAX_PACKET, socket.MSG_DONTWAIT):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def _check_peer(connection: socket.socket) -> None:
    ours = os.geteuid()
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", raw)
    if uid not in (ours, 0):
        raise PeerError("peer_uid", f"expected a peer of uid {ours}, got {uid}")


def _say_no(connection: socket.socket, text: str) -> None:
    try:
        send_refusal(connection, text)
    except OSError as error:
        log.info("ring: the peer did not wait for its refusal: %s", error)


def _remove_socket(path: Path) -> None:
    # Whoever holds the daemon's socket, which is bound before, holds this one.
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(f"unix:{path}: expected a socket, found a file")
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"unix:{path}: {error.strerror}") from error
