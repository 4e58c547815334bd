"""What waits in the ingest queue: records that the RPC threads have made."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from queue import SimpleQueue
from typing import Protocol

from monitor.canaries import CanaryLook, CanaryResult
from monitor.records import Gap, StepBatch
from service.daemon.audit.records import Entries
from service.daemon.audit.store import AuditStore
from service.daemon.drills import Drill
from service.daemon.loaded_set import LoadedSet
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb


class Answers(Protocol):
    """Takes the answers of one stream, in order; None ends it."""

    def put(self, answer: pb.StreamResponse | None, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """
    A step to score.

    *n_missing* rows were expected by the scheduler and are not in the batch;
    *captured_at* is seconds since the epoch by the sender's clock, 0 if unknown.
    """

    batch: StepBatch
    n_missing: int
    captured_at: float
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class GapItem:
    """A gap to count. With a *problem* it stands for a refused message."""

    gap: Gap
    answers: Answers
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatItem:
    """A rank says that it lives, whether its tap wrote its rows, and its bank."""

    engine: str
    rank: int
    is_proven: bool
    answers: Answers
    bank_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodbyeItem:
    """A rank stops, and has sent all it had."""

    engine: str
    rank: int
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloItem:
    """An engine introduced itself; with a *refusal*, in vain."""

    engine: str
    detail: str
    refusal: str = ""
    model_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStart:
    """
    A rank opened a stream.

    *bank_digest* is of what its Hello was answered, *ranks* are all of its engine.
    """

    engine: str
    rank: int
    ranks: tuple[int, ...]
    hello: pb.HelloRequest
    bank_digest: str
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """A stream is over; *engine* is empty if it never said whose it was."""

    engine: str
    rank: int
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRefusalItem:
    """A rank can not compute a bank that it was told to."""

    engine: str
    rank: int
    digest: str
    reason: str
    answers: Answers


class ChangeKind(StrEnum):
    """What an operator asks for."""

    LOAD = "load"
    UNLOAD = "unload"
    SHADOW = "shadow"
    PROMOTE = "promote"
    ROLL_BACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeItem:
    """
    A change of the detector sets.

    *reply* gets "" when it is in the record, else why it can not be made; *loaded* is
    set for `ChangeKind.LOAD`, and *name* for all but that and `ChangeKind.ROLL_BACK`.
    """

    kind: ChangeKind
    by: str
    reply: SimpleQueue[str]
    name: str = ""
    loaded: LoadedSet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryStart:
    """
    Canaries of the live set are about to be sent, as requests with *name* in their id.

    *reply* gets what looks for them, or None if the set has none.
    """

    name: str
    reply: SimpleQueue[CanaryLook | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryEnd:
    """
    The canaries that were started have had their time.

    *problem* says why the server did not answer, "" if it did; *reply* gets the result
    when it is in the record.
    """

    problem: str
    reply: SimpleQueue[CanaryResult | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillItem:
    """A test flag; *reply* gets when it was durable, in seconds since the epoch."""

    drill: Drill
    reply: SimpleQueue[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordItem:
    """
    What people did: labels, views, exports.

    *reply* gets "" when *entries* are in the record.
    """

    entries: Entries
    reply: SimpleQueue[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreItem:
    """
    What only the thread that writes the record may do.

    *act* gets the store and the time; *reply* gets what it returns.
    """

    act: Callable[[AuditStore, float], int]
    reply: SimpleQueue[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseItem:
    """
    Nothing is to be kept of the requests that run and are called *name*.

    *reply* gets their ids, when what was queued before this is in the record.
    """

    name: str
    by: str
    reply: SimpleQueue[list[str]]


@dataclass(frozen=True, slots=True)
class Stop:
    """What comes after this is not taken: its sender will send it again."""


Item = (
    BatchItem
    | GapItem
    | HeartbeatItem
    | GoodbyeItem
    | HelloItem
    | StreamStart
    | StreamEnd
    | BankRefusalItem
    | ChangeItem
    | CanaryStart
    | CanaryEnd
    | DrillItem
    | RecordItem
    | StoreItem
    | EraseItem
    | Stop
)
