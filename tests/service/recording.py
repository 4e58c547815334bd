"""A record in a folder, and what is written to it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from monitor.records import Flag, RequestSummary, Verdict
from probes.contributions import top
from service.daemon.audit.records import Entries, Label, LabelValue
from service.daemon.audit.store import AuditStore, StoreSettings

ENGINE = "engine"


def flag(
    request_id: str,
    detector: str = "max",
    *,
    tokens: Sequence[int] = (5, 6, 7),
    engine: str = ENGINE,
    contributions: Mapping[str, float] | None = None,
) -> Flag:
    """A flag at the second of its tokens."""
    return Flag(
        engine=engine,
        request_id=request_id,
        detector=detector,
        score=2.0,
        threshold=1.0,
        position=1,
        bank_digest="b" * 64,
        scores=np.linspace(0, 2, len(tokens), dtype=np.float32),
        token_ids=np.array(tokens, dtype=np.int32),
        contributions=top(contributions or {}),
    )


def summary(
    request_id: str,
    *detectors: str,
    tokens: Sequence[int] = (5, 6, 7, 8),
    verdict: Verdict = Verdict.SCANNED,
    engine: str = ENGINE,
) -> RequestSummary:
    """A request that ended, flagged by *detectors*."""
    return RequestSummary(
        engine=engine,
        request_id=request_id,
        verdict=verdict,
        n_prompt_tokens=2,
        n_tokens_scored=len(tokens),
        n_tokens_lost={},
        statistics=dict.fromkeys(detectors, 2.0),
        margins=dict.fromkeys(detectors, 1.0),
        flagged_by=detectors,
        scores={n: np.arange(len(tokens), dtype=np.float32) for n in detectors},
        token_ids=np.array(tokens if detectors else (), dtype=np.int32),
    )


def label(
    flag_id: int,
    said: LabelValue = LabelValue.TRUE,
    *,
    reviewer: str = "ada",
    request_id: str = "r1",
    note: str = "",
) -> Label:
    """A reviewer's word on a flag."""
    return Label(
        engine=ENGINE,
        request_id=request_id,
        reviewer=reviewer,
        label=said,
        flag_id=flag_id,
        note=note,
    )


@contextmanager
def open_store(
    folder: Path, keep: str = "token_ids", keys: Path | None = None
) -> Iterator[AuditStore]:
    """The record in *folder*, opened for writing."""
    settings = StoreSettings(keep=keep, keys=keys)
    store = AuditStore.open(
        folder, model="m", bundle_digest="d" * 64, settings=settings
    )
    try:
        yield store
    finally:
        store.close()


def write(
    folder: Path, *rounds: Entries, at: float = 1000.0, keep: str = "token_ids"
) -> None:
    """Write *rounds*, a transaction and a second each."""
    with open_store(folder, keep) as store:
        for i, entries in enumerate(rounds):
            store.write(entries, at + i)
