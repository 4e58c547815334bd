"""Decides whether an engine may be watched with a bundle. Pure."""

from probes.bank import ProjectionBank
from probes.bundle import Bundle, check_identity
from probes.detector import ActivationDetector
from probes.errors import ArtifactError
from probes.identity import ModelIdentity
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import MAX_NAME, identity_from_proto

_MAX_RANKS = 64  # Pipeline stages of one engine that are believed.


class MalformedHello(ValueError):  # noqa: N818 - the noun an operator reads
    """The sender's fault: a Hello that no bundle could accept. One line."""


class UnfitEngine(ValueError):  # noqa: N818
    """This engine cannot be watched with this bundle. One line."""


def check_hello(request: pb.HelloRequest, bundle: Bundle, bank: ProjectionBank) -> None:
    """
    Raise unless *request* is of the model and the hook points of *bundle*.

    Raises:
        MalformedHello: A field is missing or makes no sense.
        UnfitEngine: Another model, or a hook point or room for columns is missing.
    """
    if not 0 < len(request.engine) <= MAX_NAME:
        raise MalformedHello(f"engine: expected 1 to {MAX_NAME} characters")
    if request.mode not in (
        pb.CAPTURE_MODE_PUSHDOWN,
        pb.CAPTURE_MODE_ACTIVATIONS,
    ):
        raise MalformedHello(f"mode: expected 1 or 2, got {request.mode}")
    if len(set(request.hook_points)) != len(request.hook_points):
        raise MalformedHello("hook_points: expected each once, got duplicates")
    _check_ranks(request)
    try:
        identity = ModelIdentity(**identity_from_proto(request.identity))
        check_identity(bundle, identity)
    except ArtifactError as error:
        raise UnfitEngine(str(error)) from error
    except ValueError as error:
        raise MalformedHello(f"identity: {error}") from error
    missing = set(bank.hook_points) - set(request.hook_points)
    if missing:
        raise UnfitEngine(
            f"hook_points: bundle {bundle.name!r} reads {sorted(missing)}, "
            f"tapped are {sorted(request.hook_points)}"
        )
    if request.mode == pb.CAPTURE_MODE_PUSHDOWN:
        reading_all = [
            d.name for d in bundle.detectors if isinstance(d, ActivationDetector)
        ]
        if reading_all:
            raise UnfitEngine(
                f"mode: {reading_all} of bundle {bundle.name!r} read whole "
                f"activations: expected the plugin in mode 'activations', "
                f"got 'pushdown'"
            )
        needed = max(bank.n_columns(h) for h in bank.hook_points)
        if needed > request.k_max:
            raise UnfitEngine(
                f"k_max: bundle {bundle.name!r} needs {needed} columns at a hook "
                f"point, the engine has room for {request.k_max}"
            )


def _check_ranks(request: pb.HelloRequest) -> None:
    ranks = list(request.ranks) or [request.rank]
    if len(ranks) > _MAX_RANKS or ranks != sorted(set(ranks)):
        raise MalformedHello(
            f"ranks: expected up to {_MAX_RANKS}, rising, got {ranks[:_MAX_RANKS]}"
        )
    if request.rank not in ranks:
        raise MalformedHello(f"rank: expected one of {ranks}, got {request.rank}")
    beyond = set(request.rank_hook_points) - set(request.hook_points)
    if beyond:
        raise MalformedHello(
            f"rank_hook_points: expected some of {sorted(request.hook_points)}, "
            f"got {sorted(beyond)}"
        )
