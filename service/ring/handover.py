# On a sequenced-packet unix socket beside the daemon's own. The engine says who it is:
#
#     engine -> daemon   MAGIC, rank (u32), engine (UTF-8)
#     daemon -> engine   MAGIC, capacity (u64), ring id (u64)     with a descriptor
#     daemon -> engine   MAGIC, 0, 0, why not (UTF-8)             without
#
# and never which memory: the daemon makes it. Afterwards a packet from the engine
# wakes the reader, and the end of the connection is the end of the writer.
"""What is said when a ring changes hands."""

import os
import socket
import struct
from pathlib import Path

MAGIC = b"iw-ring1"
MAX_PACKET = 2048
_MAX_ENGINE = 512
_REQUEST = struct.Struct("<8sI")
_ANSWER = struct.Struct("<8sQQ")


class HandoverError(ValueError):
    """What came over the socket is not a hand-over, or it says no."""


def socket_path(path: Path) -> Path:
    """Return the path of the socket beside the daemon's, at *path*."""
    return path.with_name(path.name + ".ring")


def new_socket() -> socket.socket:
    """Return a socket of the kind that rings are handed over on."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def request_packet(engine: str, rank: int) -> bytes:
    """Return what an engine asks with."""
    return _REQUEST.pack(MAGIC, rank) + engine.encode()


def read_request(packet: bytes) -> tuple[str, int]:
    """
    Return (engine, rank) of what a peer asked.

    Raises:
        HandoverError: It is no such request.
    """
    name = packet[_REQUEST.size :]
    if not packet.startswith(MAGIC) or not 0 < len(name) <= _MAX_ENGINE:
        raise HandoverError(f"expected an engine's request, got {packet!r:.100}")
    try:
        return name.decode(), _REQUEST.unpack_from(packet)[1]
    except UnicodeDecodeError as error:
        raise HandoverError(f"expected an engine's name, got {name!r:.100}") from error


def send_ring(
    connection: socket.socket, fd: int, *, capacity: int, ring_id: int
) -> None:
    """Hand the ring behind *fd* over. Raises OSError if the peer is gone."""
    packet = _ANSWER.pack(MAGIC, capacity, ring_id)
    socket.send_fds(connection, [packet], [fd])


def send_refusal(connection: socket.socket, reason: str) -> None:
    """Say no. Raises OSError if the peer is gone."""
    connection.send(_ANSWER.pack(MAGIC, 0, 0) + reason.encode()[:_MAX_ENGINE])


def receive_ring(connection: socket.socket) -> tuple[int, int, int]:
    """
    Return (descriptor, capacity, ring id) of the ring that was handed over.

    Raises:
        HandoverError: It was refused, with the reason, or what came is no answer.
        OSError: Nothing came.
    """
    packet, fds, _, _ = socket.recv_fds(connection, MAX_PACKET, 4)
    if len(packet) < _ANSWER.size or not packet.startswith(MAGIC) or len(fds) > 1:
        _close(fds)
        raise HandoverError(f"expected an answer of the daemon, got {packet!r:.100}")
    _, capacity, ring_id = _ANSWER.unpack_from(packet)
    if not fds:
        reason = packet[_ANSWER.size :].decode(errors="replace")
        raise HandoverError(f"the daemon gave no ring: {reason}")
    return fds[0], capacity, ring_id


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
