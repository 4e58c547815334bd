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
    """An accepted engine: what it said, what it was told, and what it taps."""

    hello: pb.HelloRequest
    bank_digest: str
    holds_activations: bool
    hook_points: frozenset[str]


class Sessions:
    """Every accepted engine. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def accept(self, request: pb.HelloRequest, bank_digest: str) -> None:
        """Remember a Hello that was checked, and which bank answered it."""
        session = Session(
            hello=request,
            bank_digest=bank_digest,
            holds_activations=request.mode == pb.CAPTURE_MODE_ACTIVATIONS,
            hook_points=frozenset(request.hook_points),
        )
        with self._lock:
            self._sessions[request.engine] = session
            self._sessions.move_to_end(request.engine)
            if len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)

    def of(self, engine: str) -> Session | None:
        """Return the engine's session, or None if it never said Hello."""
        with self._lock:
            return self._sessions.get(engine)


def check_tapped(batch: StepBatch, session: Session) -> None:
    """Raise `WireError` unless *batch* is of hook points that the engine taps."""
    unknown = set(batch.squared_norms) - session.hook_points
    if unknown:
        raise WireError(
            f"batch.hook_points: expected {sorted(session.hook_points)}, "
            f"got {sorted(unknown)}"
        )
