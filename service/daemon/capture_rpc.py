"""The engines' side of the wire: Hello and Stream. Converts and enqueues."""

import threading
from collections.abc import Iterator
from math import isfinite
from queue import SimpleQueue

import grpc

from service.daemon.hello import MalformedHello, UnfitEngine
from service.daemon.ingest import Ingest
from service.daemon.items import (
    Answers,
    BankRefusalItem,
    BatchItem,
    GapItem,
    GoodbyeItem,
    HeartbeatItem,
    HelloItem,
    Item,
    StreamEnd,
    StreamStart,
)
from service.daemon.refusals import gap_of_batch_message, gap_of_gap_message
from service.daemon.sessions import Session, Sessions, check_tapped
from service.daemon.swaps import Swaps
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc
from service.wire import (
    WireError,
    batch_from_proto,
    gap_from_proto,
)

_MAX_REASON = 512  # Characters of a refusal that are believed.


class CaptureRPC(rpc.CaptureServicer):
    """
    Answers engines. Any thread; the ingest queue is the only thing it changes.
    """

    def __init__(self, swaps: Swaps, ingest: Ingest) -> None:
        self._swaps = swaps
        self._ingest = ingest
        self._sessions = Sessions()

    def Hello(  # noqa: N802 - gRPC's name
        self, request: pb.HelloRequest, context: grpc.ServicerContext
    ) -> pb.HelloResponse:
        """Accept an engine and hand out the bank, or say in one line why not."""
        offer = self._swaps.offer
        try:
            offer.check(request)
        except MalformedHello as error:
            self._refuse(request.engine, str(error))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except UnfitEngine as error:
            self._refuse(request.engine, str(error))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        self._sessions.accept(request, offer.bank.digest)
        model_name = request.served_model_name or request.identity.model
        detail = (
            f"{model_name}, "
            f"vLLM {request.vllm_version}, runner {request.model_runner}, "
            f"rank {request.rank} of {list(request.ranks) or [request.rank]}, "
            f"data-parallel rank {request.data_parallel_rank}, "
            f"{pb.CaptureMode.Name(request.mode)}"
        )
        item = HelloItem(engine=request.engine, detail=detail, model_name=model_name)
        self._ingest.put(item)
        is_pushdown = request.mode == pb.CAPTURE_MODE_PUSHDOWN
        return pb.HelloResponse(
            bank=offer.message if is_pushdown else None,
            bundle_digest=self._swaps.live.digest,
        )

    def Stream(  # noqa: N802 - gRPC's name
        self,
        request_iterator: Iterator[pb.StreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamResponse]:
        """Take batches in; give acknowledgements out, in order."""
        answers: SimpleQueue[pb.StreamResponse | None] = SimpleQueue()
        if not context.add_callback(lambda: answers.put(None)):
            return  # Cancelled before it began: nobody would end the wait below.
        problem: list[str] = []
        threading.Thread(
            target=self._read,
            args=(request_iterator, answers, problem),
            name="stream",
            daemon=True,
        ).start()
        while (answer := answers.get()) is not None:
            yield answer
        if problem:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem[0])

    def session_of(self, engine: str, rank: int) -> Session | None:
        """Return what a rank said at Hello, or None if it never said it."""
        return self._sessions.of(engine, rank)

    def begin(self, session: Session, answers: Answers) -> None:
        """Note that the rank of *session* opened a stream, or a ring."""
        start = StreamStart(
            engine=session.hello.engine,
            rank=session.hello.rank,
            ranks=session.ranks,
            hello=session.hello,
            bank_digest=session.bank_digest,
            answers=answers,
        )
        self._ingest.put(start)

    def take(
        self, request: pb.StreamRequest, engine: str, rank: int, answers: Answers
    ) -> bool:
        """
        Enqueue what *engine* wrote into its ring; False when nothing is taken more.

        A ring is one engine's: whatever *request* says, it is that one's.
        """
        session = self._sessions.of(engine, rank)
        if session is None:
            return False  # Too many said Hello since: it has to say so again.
        request.engine, request.rank = engine, rank
        return self._ingest.put(item_of(request, session, answers))

    def end(self, engine: str, rank: int, answers: Answers) -> None:
        """Note that a stream of a rank, or its ring, is over."""
        self._ingest.put(StreamEnd(engine=engine, rank=rank, answers=answers))

    def _read(
        self,
        requests: Iterator[pb.StreamRequest],
        answers: Answers,
        problem: list[str],
    ) -> None:
        engine, rank = "", 0
        try:
            for request in requests:
                session = self._sessions.of(request.engine, request.rank)
                is_other = engine and (request.engine, request.rank) != (engine, rank)
                if session is None or is_other:
                    problem.append(
                        f"engine: expected one that said Hello, got "
                        f"{request.engine!r}, rank {request.rank}"
                    )
                    return
                if not engine:
                    engine, rank = request.engine, request.rank
                    self.begin(session, answers)
                item = item_of(request, session, answers)
                if not self._ingest.put(item):
                    return
        except grpc.RpcError:
            return  # The peer is gone; StreamEnd below is what it means.
        finally:
            self.end(engine, rank, answers)

    def _refuse(self, engine: str, reason: str) -> None:
        refused = HelloItem(engine=engine, detail="", refusal=reason)
        self._ingest.put(refused)


def item_of(request: pb.StreamRequest, session: Session, answers: Answers) -> Item:
    """
    Convert a message to what the ingest thread takes.

    A malformed one becomes a `GapItem` with a problem, so that its tokens count.
    """
    engine, rank = request.engine, request.rank
    kind = request.WhichOneof("payload")
    if kind == "heartbeat":
        return HeartbeatItem(
            engine=engine,
            rank=rank,
            is_proven=request.heartbeat.is_proven,
            answers=answers,
            bank_digest=request.heartbeat.bank_digest,
        )
    if kind == "goodbye":
        return GoodbyeItem(engine=engine, rank=rank, answers=answers)
    if kind == "bank_refusal":
        return BankRefusalItem(
            engine=engine,
            rank=rank,
            digest=request.bank_refusal.digest,
            reason=" ".join(request.bank_refusal.reason.split())[:_MAX_REASON],
            answers=answers,
        )
    problem = (
        "payload: expected batch, gap, heartbeat, goodbye or bank_refusal, got none"
    )
    try:
        if kind == "gap":
            gap = gap_from_proto(request.gap, engine=engine, rank=rank)
            return GapItem(gap=gap, answers=answers)
        if kind == "batch":
            message = request.batch
            batch = batch_from_proto(
                message,
                engine=engine,
                rank=rank,
                holds_activations=session.holds_activations,
            )
            check_tapped(batch, session)
            return BatchItem(
                batch=batch,
                n_missing=max(0, message.n_rows_expected - len(batch.token_ids)),
                captured_at=(
                    message.captured_at if isfinite(message.captured_at) else 0.0
                ),
                answers=answers,
            )
    except WireError as error:
        problem = str(error)
    if kind == "gap":
        gap = gap_of_gap_message(request.gap, engine=engine, rank=rank)
    else:
        gap = gap_of_batch_message(request.batch, engine=engine, rank=rank)
    return GapItem(gap=gap, answers=answers, problem=problem)
