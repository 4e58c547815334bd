"""What waits in the ingest queue: records that the RPC threads have made."""

from dataclasses import dataclass
from queue import SimpleQueue

from monitor.records import Gap, StepBatch
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

Answers = SimpleQueue[pb.StreamResponse | None]
"""Answers of one stream, in order; None ends it."""


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
    """An engine says that it lives, and whether its tap wrote its rows."""

    engine: str
    is_proven: bool
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodbyeItem:
    """An engine stops, and has sent all it had."""

    engine: str
    answers: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloItem:
    """An engine introduced itself; with a *refusal*, in vain."""

    engine: str
    detail: str
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStart:
    """An engine opened a stream."""

    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEnd:
    """A stream is over; *engine* is empty if it never said whose it was."""

    engine: str
    answers: Answers


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
    | Stop
)
