"""What one round over the ingest queue has made, before any of it is announced."""

from dataclasses import dataclass, field
from queue import SimpleQueue

from monitor.canaries import CanaryResult
from monitor.core import Finished
from monitor.records import Gap, LossReason
from service.daemon.audit.records import Entries
from service.daemon.items import Answers, BatchItem, DrillItem
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb


@dataclass(slots=True)
class Drain:
    """What one round over the queue has made and not yet announced."""

    entries: Entries = field(default_factory=Entries)
    answers: list[tuple[Answers, pb.StreamResponse | None]] = field(
        default_factory=list
    )
    replies: list[tuple[SimpleQueue[str], str]] = field(default_factory=list)
    erased: list[tuple[SimpleQueue[list[str]], list[str]]] = field(default_factory=list)
    results: list[tuple[SimpleQueue[CanaryResult | None], CanaryResult | None]] = field(
        default_factory=list
    )
    drills: list[DrillItem] = field(default_factory=list)
    captured_at: list[float] = field(default_factory=list)
    scoring_seconds: list[float] = field(default_factory=list)
    n_repeated: int = 0
    n_refused: int = 0
    n_hellos_refused: int = 0

    def finish(self, finished: list[Finished]) -> None:
        """Note what was said of requests that ended."""
        for flags, summary in finished:
            self.entries.flags += flags
            self.entries.summaries.append(summary)


def empty_gap(engine: str, began_at: float, ended_at: float) -> Gap:
    """Return a gap in which nobody knows what was lost."""
    return Gap(
        engine=engine,
        rank=0,
        reason=LossReason.NOT_RECEIVED,
        first_step=0,
        last_step=0,
        n_tokens=0,
        began_at=began_at,
        ended_at=ended_at,
    )


def missing_gap(item: BatchItem) -> Gap:
    """Return the rows that the scheduler counted and the batch of *item* lacks."""
    batch = item.batch
    return Gap(
        engine=batch.engine,
        rank=batch.rank,
        reason=LossReason.NOT_RECEIVED,
        first_step=batch.step,
        last_step=batch.step,
        n_tokens=item.n_missing,
        began_at=item.captured_at,
        ended_at=item.captured_at,
    )
