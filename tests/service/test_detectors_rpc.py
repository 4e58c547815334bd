"""The operator's RPCs, without a daemon behind them."""

from typing import cast

import grpc
import pytest

from service.daemon.detectors_rpc import DetectorsRPC
from service.daemon.ingest import Ingest
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb


class Queue:
    """An ingest thread that takes what it is given, or is over."""

    def __init__(self, *, is_over: bool) -> None:
        self.is_over = is_over

    def put(self, item: object) -> bool:
        return not self.is_over


class Aborted(Exception):  # noqa: N818 - as gRPC's own does, it ends the call
    """What `abort` raises."""


class Call:
    """A call of a server that is stopped while it waits."""

    def __init__(self, peer: str = "unix:") -> None:
        self._peer = peer
        self.n_looks = 0

    def peer(self) -> str:
        return self._peer

    def is_active(self) -> bool:
        self.n_looks += 1
        return self.n_looks < 3

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code.name, details)


@pytest.mark.parametrize("is_over", [False, True])
def test_a_daemon_that_stops_is_not_held_up(is_over: bool) -> None:
    """
    A change that nobody will answer ends with its call, and not a minute later.
    """
    rpc = DetectorsRPC(cast(Ingest, Queue(is_over=is_over)))
    request = pb.DetectorsRequest(name="x")

    with pytest.raises(Aborted, match="UNAVAILABLE"):
        rpc.Promote(request, cast(grpc.ServicerContext, Call()))


def test_a_peer_that_is_not_on_the_socket_is_turned_away() -> None:
    """
    Before anything is read or queued.
    """
    rpc = DetectorsRPC(cast(Ingest, Queue(is_over=True)))
    request = pb.LoadDetectorsRequest(path="/nowhere")

    with pytest.raises(Aborted, match="PERMISSION_DENIED"):
        rpc.LoadDetectors(request, cast(grpc.ServicerContext, Call("ipv4:127.0.0.1:9")))
