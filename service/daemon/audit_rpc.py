"""The record's side of the wire: answers from it, and what operators do to it."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

import grpc

from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries, Export, View
from service.daemon.audit.rows import FlagRow
from service.daemon.audit.store import AuditStore
from service.daemon.detectors_rpc import local_peer
from service.daemon.ingest import Ingest
from service.daemon.items import EraseItem, RecordItem, StoreItem
from service.printable import printable
from service.request_ids import client_request
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc
from service.wire import CALLER

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 10_000  # Some 3 MB of answer.
_MOST_NAME = 100
_REPLY_SECONDS = 60.0
_LOOK_SECONDS = 0.25

_T = TypeVar("_T")


class AuditRPC(rpc.AuditServicer):
    """Any thread reads; the ingest thread does whatever writes."""

    def __init__(self, reader: AuditReader, ingest: Ingest) -> None:
        self._reader = reader
        self._ingest = ingest

    def ListFlags(  # noqa: N802 - gRPC's name
        self, request: pb.ListFlagsRequest, context: grpc.ServicerContext
    ) -> pb.ListFlagsResponse:
        """Return the newest flags first."""
        rows = self._reader.flags(
            limit=min(request.limit or _DEFAULT_LIMIT, _MAX_LIMIT),
            detector=request.detector,
            request_id=request.request_id,
        )
        return pb.ListFlagsResponse(flags=[flag_to_proto(row) for row in rows])

    def GetFlag(  # noqa: N802 - gRPC's name
        self, request: pb.GetFlagRequest, context: grpc.ServicerContext
    ) -> pb.GetFlagResponse:
        """Return one flag with its scores, or NOT_FOUND."""
        is_possible = request.flag_id < 1 << 63  # SQLite's integers are signed.
        found = self._reader.flag(request.flag_id) if is_possible else None
        if found is None:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"flag {request.flag_id}: there is none"
            )
        if found.token_ids:
            view = View(
                engine=found.flag.engine,
                request_id=found.flag.request_id,
                viewer=_caller(context),
                where="rpc",
            )
            self._record(Entries(views=[view]), context)
        return pb.GetFlagResponse(
            flag=flag_to_proto(found.flag),
            scores=found.scores,
            token_ids=found.token_ids,
        )

    def Erase(  # noqa: N802
        self, request: pb.EraseRequest, context: grpc.ServicerContext
    ) -> pb.EraseResponse:
        """Destroy what is kept of a request; durable when this returns."""
        local_peer(context)
        by = _caller(context)
        # First those that run: whichever ends meanwhile is in the record afterwards.
        reply: SimpleQueue[list[str]] = SimpleQueue()
        asked = EraseItem(name=request.request_id, by=by, reply=reply)
        running = self._wait(asked, reply, context)
        # Looked for on this thread: all records are, and scoring need not wait for it.
        names = self._reader.matching(request.request_id)
        for name in names:
            self._do(partial(_erase, name, by), context)
        return pb.EraseResponse(n_requests=len({*names, *running}))

    def Retain(  # noqa: N802
        self, request: pb.RetainRequest, context: grpc.ServicerContext
    ) -> pb.RetainResponse:
        """Take away what is old, a part at a time: scoring goes on between them."""
        local_peer(context)
        before, n_taken = request.before, 0
        while n := self._do(lambda store, now: store.retain(before, now), context):
            n_taken += n
        return pb.RetainResponse(n_taken=n_taken)

    def RecordUse(  # noqa: N802
        self, request: pb.RecordUseRequest, context: grpc.ServicerContext
    ) -> pb.RecordUseResponse:
        """Record a view or an export."""
        local_peer(context)
        entries = Entries()
        if request.HasField("view"):
            view = request.view
            entries.views.append(
                View(
                    engine=view.engine,
                    request_id=view.request_id,
                    viewer=view.viewer,
                    where=view.where,
                )
            )
        if request.HasField("export"):
            export = request.export
            entries.exports.append(
                Export(
                    who=export.who,
                    format=export.format,
                    query=export.query,
                    n_records=export.n_records,
                    has_tokens=export.has_tokens,
                )
            )
        self._record(entries, context)
        return pb.RecordUseResponse()

    def _record(self, entries: Entries, context: grpc.ServicerContext) -> None:
        reply: SimpleQueue[str] = SimpleQueue()
        self._wait(RecordItem(entries=entries, reply=reply), reply, context)

    def _do(
        self, act: Callable[[AuditStore, float], int], context: grpc.ServicerContext
    ) -> int:
        reply: SimpleQueue[int] = SimpleQueue()
        return self._wait(StoreItem(act=act, reply=reply), reply, context)

    def _wait(
        self,
        item: RecordItem | StoreItem | EraseItem,
        reply: SimpleQueue[_T],
        context: grpc.ServicerContext,
    ) -> _T:
        deadline = time.monotonic() + _REPLY_SECONDS
        is_taken = self._ingest.put(item)
        # A server that stops ends its calls: a thread that slept on would hold it up.
        while is_taken and context.is_active() and time.monotonic() < deadline:
            with suppress(Empty):
                return reply.get(timeout=_LOOK_SECONDS)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping or busy")
        raise AssertionError("abort raises")


def _erase(request_id: str, by: str, store: AuditStore, now: float) -> int:
    return store.erase(request_id, now, by=by)


def _caller(context: grpc.ServicerContext) -> str:
    """Return who the caller says to be, and where the call came from."""
    said = dict(context.invocation_metadata()).get(CALLER, b"")
    name = said.decode(errors="replace") if isinstance(said, bytes) else said
    peer = str(context.peer())
    return f"{printable(name[:_MOST_NAME])}, {peer}" if name else peer


def flag_to_proto(row: FlagRow) -> pb.FlagRecord:
    """Convert a stored flag."""
    client = client_request(row.request_id)
    return pb.FlagRecord(
        flag_id=row.flag_id,
        request_id=row.request_id,
        detector=row.detector,
        score=row.score,
        threshold=row.threshold,
        position=row.position,
        bundle_digest=row.bundle_digest,
        model=row.model,
        flagged_at=row.flagged_at,
        verdict=row.verdict,
        adapter=row.adapter,
        client_request_id=client.request_id,
        client_prompt=client.prompt,
        client_answer=client.answer,
    )
