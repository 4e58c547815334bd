"""A step as what was lost of it."""

from collections.abc import Sequence

import numpy as np

from monitor.records import Gap, LossReason, LostRange, StepBatch


def gap_of_batch(batch: StepBatch, reason: LossReason, n_missing: int = 0) -> Gap:
    """
    Return every row of *batch* that was a token of its request, as lost.

    A draft is none until it is kept: then the request's next step tells of the hole.
    *n_missing* more are counted that the batch lacks. It may be malformed: what does
    not make sense of it is left out.
    """
    n_rows_each = np.diff(batch.row_offsets).tolist()
    is_sane = all(n >= 0 for n in n_rows_each)
    n_drafts = batch.n_drafts.tolist() or [0] * len(n_rows_each)
    lost = [
        LostRange(request_id=r, first_position=first, n_tokens=max(0, n - drafts))
        for r, first, n, drafts in zip(
            batch.request_ids,
            batch.first_positions.tolist(),
            n_rows_each,
            n_drafts,
            strict=False,
        )
    ]
    return Gap(
        engine=batch.engine,
        rank=batch.rank,
        reason=reason,
        first_step=batch.step,
        last_step=batch.step,
        n_tokens=sum(one.n_tokens for one in lost) + n_missing,
        lost=tuple(lost) if is_sane else (),
        finished=tuple(dict.fromkeys(batch.finished)),
    )


def joined_gap(told: Sequence[StepBatch | Gap]) -> Gap:
    """
    Return what is lost where a rank told of a gap, or did not tell.

    Positions that several ranks name are counted once by the books. Of what none
    names, ranks count the same tokens: the most that one of them counted.
    """
    gaps = [record for record in told if isinstance(record, Gap)]
    batches = [record for record in told if isinstance(record, StepBatch)]
    if not gaps:
        gaps = [gap_of_batch(batches[0], LossReason.NOT_RECEIVED)]
    lost = tuple(dict.fromkeys(one for gap in gaps for one in gap.lost))
    finished = tuple(dict.fromkeys(name for record in told for name in record.finished))
    n_unlisted = _most_of_a_rank(
        gaps, [g.n_tokens - sum(one.n_tokens for one in g.lost) for g in gaps]
    )
    n_unnamed = _most_of_a_rank(gaps, [g.n_finished - len(g.finished) for g in gaps])
    return Gap(
        engine=gaps[0].engine,
        rank=gaps[0].rank,
        reason=gaps[0].reason,
        first_step=min(gap.first_step for gap in gaps),
        last_step=max(gap.last_step for gap in gaps),
        n_tokens=sum(one.n_tokens for one in lost) + n_unlisted,
        lost=lost,
        finished=finished,
        n_finished=len(finished) + n_unnamed,
        began_at=min(gap.began_at for gap in gaps),
        ended_at=max(gap.ended_at for gap in gaps),
    )


def _most_of_a_rank(gaps: Sequence[Gap], counts: Sequence[int]) -> int:
    by_rank: dict[int, int] = {}
    for gap, n in zip(gaps, counts, strict=True):
        by_rank[gap.rank] = by_rank.get(gap.rank, 0) + max(0, n)
    return max(by_rank.values())
