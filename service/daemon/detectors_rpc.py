"""The operator's side of a swap: loads bundles, and hands changes to the ingest thread.

Rule: only who comes over the unix socket, which is its owner's (0600), may change what
is watched for. Over TCP anybody on the machine could.
"""

import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NoReturn

import grpc

from probes.errors import ArtifactError
from service.daemon.ingest import Ingest
from service.daemon.items import ChangeItem, ChangeKind
from service.daemon.loaded_set import LoadedSet
from service.daemon.swaps import SetView, SwapView
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

_REPLY_SECONDS = 60.0
"""For what is queued before a change to be scored and stored."""

_LOOK_SECONDS = 0.25
_MAX_NAME = 128


class DetectorsRPC(rpc.ControlServicer):
    """Any thread; the ingest queue is the only thing it changes."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    def ListDetectors(  # noqa: N802 - gRPC's name
        self, request: pb.ListDetectorsRequest, context: grpc.ServicerContext
    ) -> pb.DetectorSets:
        """Return every set of the last snapshot."""
        return sets_to_proto(self._ingest.snapshot.swaps)

    def LoadDetectors(  # noqa: N802
        self, request: pb.LoadDetectorsRequest, context: grpc.ServicerContext
    ) -> pb.DetectorSets:
        """Read a bundle on this thread; nothing waits for it."""
        by = local_peer(context)
        path, name = Path(request.path), request.name
        if not path.is_absolute():
            _refuse(context, f"path: expected an absolute one, got {request.path!r}")
        if len(name) > _MAX_NAME or not name.isprintable():
            _refuse(context, f"name: expected up to {_MAX_NAME} printable characters")
        try:
            loaded = LoadedSet.read(path, digest=request.digest or None, name=name)
        except (ArtifactError, OSError) as error:
            _refuse(context, " ".join(str(error).split()))
        return self._change(context, ChangeKind.LOAD, by, loaded=loaded)

    def UnloadDetectors(  # noqa: N802
        self, request: pb.DetectorsRequest, context: grpc.ServicerContext
    ) -> pb.DetectorSets:
        """Forget a set that does nothing, or end and forget the shadow."""
        by = local_peer(context)
        return self._change(context, ChangeKind.UNLOAD, by, name=request.name)

    def StartShadow(  # noqa: N802
        self, request: pb.DetectorsRequest, context: grpc.ServicerContext
    ) -> pb.DetectorSets:
        """Score the same tokens with a set beside the live one."""
        by = local_peer(context)
        return self._change(context, ChangeKind.SHADOW, by, name=request.name)

    def Promote(  # noqa: N802
        self, request: pb.DetectorsRequest, context: grpc.ServicerContext
    ) -> pb.DetectorSets:
        """Begin to make a set live."""
        by = local_peer(context)
        return self._change(context, ChangeKind.PROMOTE, by, name=request.name)

    def Rollback(  # noqa: N802
        self, request: pb.RollbackRequest, context: grpc.ServicerContext
    ) -> pb.DetectorSets:
        """Withdraw what is coming, or begin to go back to what was live."""
        by = local_peer(context)
        return self._change(context, ChangeKind.ROLL_BACK, by)

    def _change(
        self,
        context: grpc.ServicerContext,
        kind: ChangeKind,
        by: str,
        *,
        name: str = "",
        loaded: LoadedSet | None = None,
    ) -> pb.DetectorSets:
        reply: SimpleQueue[str] = SimpleQueue()
        item = ChangeItem(kind=kind, by=by, reply=reply, name=name, loaded=loaded)
        is_taken = self._ingest.put(item)
        problem = _wait(reply, context) if is_taken else None
        if problem is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping or busy")
        if problem:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        return sets_to_proto(self._ingest.snapshot.swaps)


def sets_to_proto(view: SwapView) -> pb.DetectorSets:
    """Convert what an operator sees of the sets."""
    return pb.DetectorSets(
        sets=[_set_to_proto(one) for one in view.sets],
        bank_digest=view.bank_digest,
        waiting_for=view.waiting_for,
        problem=view.problem,
    )


def _set_to_proto(one: SetView) -> pb.DetectorSet:
    message = pb.DetectorSet(
        name=one.name,
        digest=one.digest,
        state=one.state.value,
        path=one.path,
        n_detectors=one.n_detectors,
        n_live_requests=one.n_live_requests,
    )
    if one.tally is not None:
        message.shadow.CopyFrom(
            pb.ShadowTally(
                n_requests=one.tally.n_requests,
                n_requests_flagged=one.tally.n_requests_flagged,
                n_flagged_live=one.tally.n_flagged_live,
                n_abstentions=one.tally.n_abstentions,
                n_flags=one.tally.n_flags,
            )
        )
    return message


def local_peer(context: grpc.ServicerContext) -> str:
    """Who asks, for the record; gRPC does not say which user."""
    peer = str(context.peer())
    if not peer.startswith("unix:"):
        context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"this is for the daemon's unix socket, not for {peer}",
        )
    return "local"


def _wait(reply: SimpleQueue[str], context: grpc.ServicerContext) -> str | None:
    """Wait for *reply*; None if it does not come, or nobody waits for it any more."""
    deadline = time.monotonic() + _REPLY_SECONDS
    # A server that stops ends its calls: a thread that slept on would hold it up.
    while context.is_active() and time.monotonic() < deadline:
        with suppress(Empty):
            return reply.get(timeout=_LOOK_SECONDS)
    return None


def _refuse(context: grpc.ServicerContext, problem: str) -> NoReturn:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
    raise AssertionError("abort raises")
