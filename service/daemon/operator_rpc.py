"""The operator's side of the wire: Control."""

from urllib.parse import urlsplit

import grpc

from service.daemon.canaries import Canaries, CanaryServer
from service.daemon.detectors_rpc import DetectorsRPC, local_peer, sets_to_proto
from service.daemon.ingest import Ingest
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_CANARY_SECONDS = 10.0


class ControlRPC(DetectorsRPC):
    """Says what the daemon watches and what it missed, and changes with what."""

    def __init__(self, ingest: Ingest, canaries: Canaries) -> None:
        super().__init__(ingest)
        self._canaries = canaries

    def RunCanaries(  # noqa: N802
        self, request: pb.RunCanariesRequest, context: grpc.ServicerContext
    ) -> pb.RunCanariesResponse:
        """Send the live set's canaries; returns when they have come, or have not."""
        local_peer(context)
        url = urlsplit(request.server)
        if url.scheme not in ("http", "https") or not url.netloc:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"server: expected http://host:port, got {request.server!r}",
            )
        server = CanaryServer(
            url=request.server,
            model=request.model,
            api_key=request.api_key,
            timeout_seconds=request.timeout_seconds or _CANARY_SECONDS,
        )
        result = self._canaries.run_once(server)
        if result is None:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the live set's bundle has no canaries, or the daemon stops",
            )
        return pb.RunCanariesResponse(
            verdict=result.verdict.value,
            detail=result.detail,
            difference=result.difference,
        )

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
