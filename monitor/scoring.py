"""Scores the rows of one step with every detector, without a request's state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.records import NOT_WRITTEN, LossReason, StepBatch
from probes.bank import ProjectionBank
from probes.detector import Detector, evidence_of

SCORED = 0
"""Row fate: it has evidence."""
REPEATED = 1
"""Row fate: its position was counted before."""
FATE_REASONS: dict[int, LossReason] = {
    2: LossReason.TAP_SILENT,
    3: LossReason.NOT_FINITE,
    4: LossReason.NO_BANK,
    5: LossReason.REFUSED,
}
"""Row fates that are losses. A loss reason that a row itself can have, once."""
_FATES = {reason: fate for fate, reason in FATE_REASONS.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRows:
    """
    What became of each row of a step.

    Attributes:
        fates: uint8 of shape (n_rows,); `SCORED`, `REPEATED`, or a `FATE_REASONS` key.

        rows: int64 of shape (n_scored,); the scored rows, in order.

        evidence: Per detector, float32 of shape (n_scored, m).

        scores: float32 of shape (n_scored, n_detectors): what the record shows.
    """

    fates: NDArray[np.uint8]
    rows: NDArray[np.int64]
    evidence: tuple[NDArray[np.float32], ...]
    scores: NDArray[np.float32]


def refusal_of(batch: StepBatch, bank_digest: str) -> LossReason | None:
    """Return why no row of *batch* can be scored with this bank, if so."""
    if batch.activations or batch.bank_digest == bank_digest:
        return None
    return LossReason.REFUSED if batch.bank_digest else LossReason.NO_BANK


def score_rows(
    batch: StepBatch,
    repeated: NDArray[np.bool_],
    bank: ProjectionBank,
    detectors: Sequence[Detector],
) -> ScoredRows:
    """
    Score the rows of *batch* that are not *repeated* (n_rows,).

    A row is scored by every detector or by none: one whose evidence is not finite
    for a single detector is lost to all.
    """
    fates = np.where(repeated, REPEATED, SCORED).astype(np.uint8)
    reason = refusal_of(batch, bank.digest)
    if reason is not None:
        fates[~repeated] = _FATES[reason]
    if not (fates == SCORED).any():
        nothing = np.empty(0, dtype=np.int64)
        no_scores = np.empty((0, len(detectors)), dtype=np.float32)
        return ScoredRows(fates=fates, rows=nothing, evidence=(), scores=no_scores)
    for norms in batch.squared_norms.values():
        fates[(fates == SCORED) & (norms == NOT_WRITTEN)] = _FATES[
            LossReason.TAP_SILENT
        ]
    # Arithmetic on rows that will be thrown out may overflow; it is checked below.
    with np.errstate(all="ignore"):
        evidence = _evidence(batch, bank, detectors, fates)
    rows = np.flatnonzero(fates == SCORED)
    is_finite = np.ones(len(rows), dtype=np.bool_)
    for found in evidence:
        is_finite &= np.isfinite(found).all(axis=1)
    fates[rows[~is_finite]] = _FATES[LossReason.NOT_FINITE]
    kept = tuple(found[is_finite] for found in evidence)
    scores = [
        detector.aggregator.token_scores(found)
        for detector, found in zip(detectors, kept, strict=True)
    ]
    return ScoredRows(
        fates=fates,
        rows=rows[is_finite],
        evidence=kept,
        scores=np.stack(scores, axis=1),
    )


def count_fates(batch: StepBatch, fates: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many rows of each fate a request has, (n_requests, n_fates)."""
    n_requests, n_fates = len(batch.request_ids), max(FATE_REASONS) + 1
    request_of_row = np.repeat(np.arange(n_requests), np.diff(batch.row_offsets))
    counts = np.bincount(
        request_of_row * n_fates + fates, minlength=n_requests * n_fates
    )
    return counts.reshape(n_requests, n_fates)


def _evidence(
    batch: StepBatch,
    bank: ProjectionBank,
    detectors: Sequence[Detector],
    fates: NDArray[np.uint8],
) -> list[NDArray[np.float32]]:
    """Evidence of the rows still to be scored; non-finite ones are marked first."""
    if batch.activations:
        columns, norms = bank.project(dict(batch.activations))
    else:
        columns, norms = dict(batch.columns), dict(batch.squared_norms)
    for hook_point, values in columns.items():
        is_finite = np.isfinite(values).all(axis=1) & np.isfinite(norms[hook_point])
        fates[(fates == SCORED) & ~is_finite] = _FATES[LossReason.NOT_FINITE]
    rows = np.flatnonzero(fates == SCORED)
    columns = {hook_point: values[rows] for hook_point, values in columns.items()}
    norms = {hook_point: values[rows] for hook_point, values in norms.items()}
    whole = {hook_point: x[rows] for hook_point, x in batch.activations.items()}
    return [
        evidence_of(d, bank.columns_of(d.name, columns, norms), whole)
        for d in detectors
    ]
