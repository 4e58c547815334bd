"""Scores the rows of one step with every detector, without a request's state."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.records import MISATTRIBUTED, NOT_WRITTEN, LossReason, StepBatch
from probes.bank import ProjectionBank
from probes.evidence import Evidence, Scorer

SCORED = 0
"""Row fate: it has evidence."""
REPEATED = 1
"""Row fate: its position was counted before."""
FATE_REASONS: dict[int, LossReason] = {
    2: LossReason.TAP_SILENT,
    3: LossReason.NOT_FINITE,
    4: LossReason.NO_BANK,
    5: LossReason.REFUSED,
    6: LossReason.MISATTRIBUTED,
}
"""Row fates that are losses. A loss reason that a row itself can have, once."""
MISATTRIBUTED_FATE = 6
_NOTHING = Evidence(np.empty((0, 0), dtype=np.float32), {})
_MARKS = (
    (NOT_WRITTEN, LossReason.TAP_SILENT),
    (MISATTRIBUTED, LossReason.MISATTRIBUTED),
)
_FATES = {reason: fate for fate, reason in FATE_REASONS.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRows:
    """
    What became of each row of a step.

    Attributes:
        fates: uint8 of shape (n_rows,); `SCORED`, `REPEATED`, or a `FATE_REASONS` key.

        rows: int64 of shape (n_scored,); the scored rows, in order.

        evidence: Of the scored rows.

        step: Where the rows are, as the set that scored them sees it; None of tokens
            that are in no step, as those of the prefix cache.
    """

    fates: NDArray[np.uint8]
    rows: NDArray[np.int64]
    evidence: Evidence
    step: StepBatch | None = None

    def without(self, repeated: NDArray[np.bool_]) -> "ScoredRows":
        """Leave out the rows that are *repeated* (n_rows,)."""
        if not repeated.any():
            return self
        is_new = ~repeated[self.rows]
        return ScoredRows(
            fates=np.where(repeated, REPEATED, self.fates).astype(np.uint8),
            rows=self.rows[is_new],
            evidence=self.evidence.rows(is_new) if len(is_new) else self.evidence,
            step=self.step,
        )


def refusal_of(batch: StepBatch, bank_digest: str) -> LossReason | None:
    """Return why no row of *batch* can be scored with this bank, if so."""
    if batch.activations or batch.bank_digest == bank_digest:
        return None
    return LossReason.REFUSED if batch.bank_digest else LossReason.NO_BANK


def score_rows(batch: StepBatch, bank: ProjectionBank, scorer: Scorer) -> ScoredRows:
    """
    Score the rows of *batch*.

    A row is scored by every detector or by none: one whose evidence is not finite
    for a single detector is lost to all.
    """
    fates = np.full(int(batch.row_offsets[-1]), SCORED, dtype=np.uint8)
    reason = refusal_of(batch, bank.digest)
    if reason is not None:
        fates[:] = _FATES[reason]
    if not (fates == SCORED).any():
        nothing = np.empty(0, dtype=np.int64)
        return ScoredRows(fates=fates, rows=nothing, evidence=_NOTHING)
    for norms in batch.squared_norms.values():
        for mark, why in _MARKS:
            fates[(fates == SCORED) & (norms == mark)] = _FATES[why]
    # Arithmetic on rows that will be thrown out may overflow; it is checked below.
    with np.errstate(all="ignore"):
        evidence = _evidence(batch, bank, scorer, fates)
    rows = np.flatnonzero(fates == SCORED)
    is_finite = evidence.is_finite()
    if not is_finite.all():
        fates[rows[~is_finite]] = _FATES[LossReason.NOT_FINITE]
        rows, evidence = rows[is_finite], evidence.rows(is_finite)
    return ScoredRows(fates=fates, rows=rows, evidence=evidence, step=batch)


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
    scorer: Scorer,
    fates: NDArray[np.uint8],
) -> Evidence:
    """Evidence of the rows still to be scored; non-finite ones are marked first."""
    if batch.activations:
        columns, norms = bank.project(dict(batch.activations))
    else:
        columns, norms = dict(batch.columns), dict(batch.squared_norms)
    for hook_point, values in columns.items():
        is_finite = np.isfinite(values).all(axis=1) & np.isfinite(norms[hook_point])
        fates[(fates == SCORED) & ~is_finite] = _FATES[LossReason.NOT_FINITE]
    whole = dict(batch.activations)
    is_scored = fates == SCORED
    if not is_scored.all():
        columns, norms, whole = (
            {hook_point: values[is_scored] for hook_point, values in arrays.items()}
            for arrays in (columns, norms, whole)
        )
    return scorer.evidence(columns, norms, whole)
