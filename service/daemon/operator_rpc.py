"""The operator's side of the wire: Control and Audit."""

import grpc

from service.daemon.audit.reader import AuditReader, FlagRow
from service.daemon.detectors_rpc import DetectorsRPC, sets_to_proto
from service.request_ids import client_request
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 10_000  # Some 3 MB of answer.


class ControlRPC(DetectorsRPC):
    """Says what the daemon watches and what it missed, and changes with what."""

    def Status(  # noqa: N802 - gRPC's name
        self, request: pb.StatusRequest, context: grpc.ServicerContext
    ) -> pb.StatusResponse:
        """Return the last snapshot."""
        now = self._ingest.snapshot
        live = now.swaps.sets[0]
        return pb.StatusResponse(
            state=now.state.name.value,
            reason=now.state.reason,
            bundle_name=live.name,
            bundle_digest=live.digest,
            n_tokens_expected=now.n_tokens_expected,
            n_tokens_scored=now.n_tokens_scored,
            n_tokens_shadowed=now.n_tokens_shadowed,
            detectors=sets_to_proto(now.swaps),
            n_tokens_lost=now.n_tokens_lost,
            n_requests=now.n_requests,
            n_flags=now.n_flags,
            n_live_requests=now.n_live_requests,
            last_batch_at=now.last_batch_at,
            n_abstentions=now.n_abstentions,
            n_discoveries=now.n_discoveries,
            drift_log10_capital=now.drift_log10_capital,
        )


class AuditRPC(rpc.AuditServicer):
    """Answers from the record."""

    def __init__(self, reader: AuditReader) -> None:
        self._reader = reader

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
        return pb.GetFlagResponse(
            flag=flag_to_proto(found.flag),
            scores=found.scores,
            token_ids=found.token_ids,
        )


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
