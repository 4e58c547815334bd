"""The operator's side of the wire: Control."""

from urllib.parse import urlsplit

import grpc

from service.daemon.canaries import Canaries, CanaryServer
from service.daemon.detectors_rpc import DetectorsRPC, local_peer, sets_to_proto
from service.daemon.drilling import Drilling
from service.daemon.ingest import Ingest
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_CANARY_SECONDS = 10.0


class ControlRPC(DetectorsRPC):
    """Says what the daemon watches and what it missed, and changes with what."""

    def __init__(self, ingest: Ingest, canaries: Canaries, drilling: Drilling) -> None:
        super().__init__(ingest)
        self._canaries = canaries
        self._drilling = drilling

    def StartDrill(  # noqa: N802
        self, request: pb.StartDrillRequest, context: grpc.ServicerContext
    ) -> pb.StartDrillResponse:
        """Plant a test flag; returns when it is in the record."""
        local_peer(context)
        planted = self._drilling.plant()
        if planted is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping or busy")
        drill, durable_at = planted
        return pb.StartDrillResponse(
            drill_id=drill.drill_id,
            planted_at=drill.planted_at,
            durable_at=durable_at,
            metrics_url=self._drilling.metrics_url,
            sinks=self._drilling.sinks,
        )

    def GetDrill(  # noqa: N802
        self, request: pb.GetDrillRequest, context: grpc.ServicerContext
    ) -> pb.GetDrillResponse:
        """Return where a drill has arrived, or NOT_FOUND."""
        local_peer(context)
        found = self._drilling.deliveries(request.drill_id)
        if found is None:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"drill {request.drill_id!r}: not known"
            )
        return pb.GetDrillResponse(
            deliveries=[
                pb.DrillDelivery(sink=one.sink, at=one.at, problem=one.problem)
                for one in found
            ]
        )

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
