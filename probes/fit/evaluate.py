"""How well a detector separates requests."""

from collections.abc import Iterator, Sequence

import numpy as np

from probes.arrays import Float64
from probes.dataset import Dataset
from probes.detector import Detector, score
from probes.fit.select import rows_of_tokens

# Rows scored at once: 16384 of d_model 4096 are 256 MiB.
_MAX_ROWS = 16384


def auroc(scores_pos: Float64, scores_neg: Float64) -> float:
    """
    Probability that a positive scores above a negative, a tie counting half.

    The Mann-Whitney statistic over n_pos n_neg (Hanley and McNeil 1982).

    >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875

    Args:
        scores_pos: Of shape (n_pos,).

        scores_neg: Of shape (n_neg,).

    Raises:
        ValueError: One of them is empty, or a score is NaN.
    """
    if not len(scores_pos) or not len(scores_neg):
        raise ValueError(
            f"auroc: expected scores of both kinds, "
            f"got {len(scores_pos)} positive and {len(scores_neg)} negative"
        )
    if np.isnan(scores_pos).any() or np.isnan(scores_neg).any():
        raise ValueError("auroc: expected numbers, got NaN")
    negatives = np.sort(scores_neg)
    below = np.searchsorted(negatives, scores_pos, side="left")
    up_to = np.searchsorted(negatives, scores_pos, side="right")
    wins = float(below.sum() + up_to.sum()) / 2
    return wins / (len(scores_pos) * len(scores_neg))


def request_statistics(
    dataset: Dataset, detector: Detector, indices: Sequence[int] | None = None
) -> Float64:
    """
    The statistic of each request, as at its end.

    Args:
        dataset: Has activations at the hook points of *detector*.

        detector: Any detector.

        indices: Which requests; all of them by default.

    Returns:
        Of shape (n_requests,), in the order of *indices*; -inf for a request
        without rows.
    """
    wanted = range(len(dataset.requests)) if indices is None else indices
    parts = [
        _statistics_of(dataset, detector, group) for group in groups_of(dataset, wanted)
    ]
    return np.concatenate([np.empty(0), *parts])


def groups_of(dataset: Dataset, indices: Sequence[int]) -> Iterator[list[int]]:
    """Runs of *indices* with at most `_MAX_ROWS` rows, or one request."""
    group: list[int] = []
    n_rows = 0
    for index in indices:
        more = dataset.requests[index].n_rows
        if group and n_rows + more > _MAX_ROWS:
            yield group
            group, n_rows = [], 0
        group.append(index)
        n_rows += more
    if group:
        yield group


def _statistics_of(
    dataset: Dataset, detector: Detector, group: Sequence[int]
) -> Float64:
    rows_each = [
        rows_of_tokens(dataset, index, detector.aggregator.tokens) for index in group
    ]
    lengths = [len(rows) for rows in rows_each]
    activations = {
        projection.hook_point: np.concatenate(
            [dataset.activations[projection.hook_point][rows] for rows in rows_each]
        )
        for projection in detector.projections
    }
    evidence = score(detector, activations)
    row_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    start = detector.aggregator.start(len(group))
    _, statistics = detector.aggregator.update(start, evidence, row_offsets)
    return statistics
