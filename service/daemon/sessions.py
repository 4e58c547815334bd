"""What an engine said of itself at Hello, for reading its messages."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from monitor.records import StepBatch
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import WireError

_MAX_SESSIONS = 1024  # The oldest must say Hello again.


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """
    An accepted rank of an engine: what it said, what it was told, and what it taps.

    *ranks* are those whose parts make up a step of this engine.
    """

    hello: pb.HelloRequest
    bank_digest: str
    holds_activations: bool
    hook_points: frozenset[str]
    ranks: tuple[int, ...]


class Sessions:
    """Every accepted rank of every engine. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[tuple[str, int], Session] = OrderedDict()

    def accept(self, request: pb.HelloRequest, bank_digest: str) -> None:
        """Remember a Hello that was checked, and which bank answered it."""
        session = Session(
            hello=request,
            bank_digest=bank_digest,
            holds_activations=request.mode == pb.CAPTURE_MODE_ACTIVATIONS,
            hook_points=frozenset(request.rank_hook_points or request.hook_points),
            ranks=tuple(request.ranks) or (request.rank,),
        )
        key = (request.engine, request.rank)
        with self._lock:
            self._sessions[key] = session
            self._sessions.move_to_end(key)
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)

    def of(self, engine: str, rank: int) -> Session | None:
        """Return a rank's session, or None if it never said Hello."""
        with self._lock:
            return self._sessions.get((engine, rank))


def check_tapped(batch: StepBatch, session: Session) -> None:
    """Raise `WireError` unless *batch* is of hook points that the rank taps."""
    unknown = set(batch.squared_norms) - session.hook_points
    if unknown:
        raise WireError(
            f"batch.hook_points: expected {sorted(session.hook_points)}, "
            f"got {sorted(unknown)}"
        )
