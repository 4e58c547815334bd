"""What an engine said of itself at Hello, for reading its messages."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitor.records import StepBatch
from probes.bank import ProjectionBank
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import WireError

_MAX_SESSIONS = 1024  # The oldest must say Hello again.


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An accepted engine: its mode, and which hook points it taps."""

    holds_activations: bool
    hook_points: frozenset[str]


class Sessions:
    """Every accepted engine. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def accept(self, request: pb.HelloRequest) -> None:
        """Remember a Hello that was checked."""
        session = Session(
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


def keep_what_is_read(
    batch: StepBatch, session: Session, bank: ProjectionBank
) -> StepBatch:
    """
    Leave out of *batch* what no detector reads.

    An engine may tap more hook points than a bundle reads, and pads every hook
    point's columns to the widest.

    Raises:
        WireError: A hook point is not one that the engine said it taps.
    """
    unknown = set(batch.squared_norms) - session.hook_points
    if unknown:
        raise WireError(
            f"batch.hook_points: expected {sorted(session.hook_points)}, "
            f"got {sorted(unknown)}"
        )
    if not batch.activations and batch.bank_digest != bank.digest:
        return batch
    columns = {
        hook_point: values[:, : bank.n_columns(hook_point)]
        for hook_point, values in _read(batch.columns, bank).items()
    }
    return replace(
        batch,
        columns=columns,
        activations=_read(batch.activations, bank),
        squared_norms=_read(batch.squared_norms, bank),
    )


def _read(
    arrays: Mapping[str, NDArray[np.float32]], bank: ProjectionBank
) -> dict[str, NDArray[np.float32]]:
    return {h: arrays[h] for h in bank.hook_points if h in arrays}
