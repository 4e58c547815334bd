"""A large record, written the way the daemon writes it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monitor.records import Flag, RequestSummary, Verdict
from service.daemon.audit.records import Entries, Label, LabelValue
from service.daemon.audit.store import AuditStore
from tests.monitor.builders import ENGINE

DAYS = 10.0
_DAY = 86400.0
_N_TOKENS = 16
_BATCH = 2000
_DETECTORS = ("max", "ema", "mean")


def fill_large(folder: Path, now: float, n_records: int) -> None:
    """Write *n_records*, half requests and half their flags, up to *now*."""
    rng = np.random.default_rng(3)
    n_requests = n_records // 2
    store = AuditStore.open(folder, model="tiny", bundle_digest="d" * 64)
    try:
        for first in range(0, n_requests, _BATCH):
            numbers = range(first, min(first + _BATCH, n_requests))
            at = now - DAYS * _DAY * (1 - first / n_requests)
            flags = [_flag(rng, number) for number in numbers]
            store.write(Entries(flags=flags), at)
            store.write(Entries(summaries=[_summary(flag) for flag in flags]), at)
            store.write(Entries(labels=list(_labels(rng, first, flags))), at)
    finally:
        store.close()


def write_long(folder: Path, now: float, n_tokens: int) -> None:
    """Write one request of *n_tokens* that every detector flagged."""
    rng = np.random.default_rng(5)
    scores = {name: rng.normal(size=n_tokens).astype(np.float32) for name in _DETECTORS}
    token_ids = rng.integers(0, 256, n_tokens).astype(np.int32)
    flags = [
        Flag(
            engine=ENGINE,
            request_id="long",
            detector=name,
            score=float(values.max()),
            threshold=2.5,
            position=int(values.argmax()),
            bank_digest="b" * 64,
            scores=values,
            token_ids=token_ids,
        )
        for name, values in scores.items()
    ]
    summary = RequestSummary(
        engine=ENGINE,
        request_id="long",
        verdict=Verdict.SCANNED,
        n_prompt_tokens=n_tokens // 2,
        n_tokens_scored=n_tokens,
        n_tokens_lost={},
        statistics={flag.detector: flag.score for flag in flags},
        flagged_by=_DETECTORS,
        margins={flag.detector: flag.score - 2.5 for flag in flags},
        scores=scores,
        token_ids=token_ids,
    )
    store = AuditStore.open(folder, model="tiny", bundle_digest="d" * 64)
    try:
        store.write(Entries(flags=flags), now)
        store.write(Entries(summaries=[summary]), now)
    finally:
        store.close()


def _flag(rng: np.random.Generator, number: int) -> Flag:
    scores = rng.normal(size=_N_TOKENS).astype(np.float32) + np.float32(3)
    return Flag(
        engine=ENGINE,
        request_id=f"chatcmpl-{number:08d}-92983f4d",
        detector=_DETECTORS[int(rng.choice(3, p=[0.7, 0.299, 0.001]))],
        score=float(scores.max()),
        threshold=2.5,
        position=int(scores.argmax()),
        bank_digest="b" * 64,
        scores=scores,
        token_ids=np.arange(_N_TOKENS, dtype=np.int32) + 40,
    )


def _summary(flag: Flag) -> RequestSummary:
    return RequestSummary(
        engine=flag.engine,
        request_id=flag.request_id,
        verdict=Verdict.SCANNED if hash(flag.score) % 50 else Verdict.PARTIAL,
        n_prompt_tokens=4,
        n_tokens_scored=_N_TOKENS,
        n_tokens_lost={},
        statistics={flag.detector: flag.score},
        flagged_by=(flag.detector,),
        margins={flag.detector: flag.score - 2.5},
        scores={flag.detector: flag.scores},
        token_ids=flag.token_ids,
    )


def _labels(rng: np.random.Generator, first: int, flags: list[Flag]) -> Iterator[Label]:
    """One flag in a hundred has two labels, half of these pairs differ."""
    for i, flag in enumerate(flags):
        if rng.random() >= 0.01:
            continue
        for reviewer in ("ada", "grace"):
            yield Label(
                engine=flag.engine,
                request_id=flag.request_id,
                reviewer=reviewer,
                label=LabelValue(rng.choice(["true", "false"])),
                flag_id=first + i + 1,
            )
