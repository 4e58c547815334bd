"""Fits where a cascade's first stage stops, on benign tokens."""

from collections.abc import Sequence

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, Int64
from probes.cascade import Cascade, cascade_of
from probes.dataset import Dataset
from probes.detector import Detector, score
from probes.fit.select import rows_of_requests, subsample

# Rows that are scored at once: 64 MiB of one hook point at d_model 4096.
_ROWS_AT_ONCE = 4096


def fit_cascade(
    dataset: Dataset,
    *,
    name: str,
    first: Detector,
    second: Detector,
    benign: Sequence[int],
    aggregator: Aggregator,
    pass_share: float = 0.9,
    max_rows: int = 20_000,
    seed: int = 0,
) -> Cascade:
    """
    Put *second* behind *first*, which lets most benign tokens through.

    The level is a quantile of the first stage's evidence on benign tokens, the floor
    the least evidence that the second stage gives one.

    Args:
        dataset: Has activations at the hook points of both.

        name: Of the detector.

        first: The cheap stage.

        second: The other.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector; those of the stages are not used.

        pass_share: At least this share of the benign tokens is let through, in (0, 1).

        max_rows: At most this many tokens, drawn at random.

        seed: Of that draw.

    Raises:
        ValueError: There are no benign tokens, a stage has more than one column of
            evidence, or *pass_share* is out of range.
    """
    if not 0 < pass_share < 1:
        raise ValueError(f"pass_share: expected a number in (0, 1), got {pass_share}")
    counted = rows_of_requests(dataset, benign, aggregator.tokens)
    rows = subsample(counted, max_rows, seed)
    if not len(rows):
        raise ValueError(f"detector {name!r}: expected benign tokens, got 0")
    judged, looked_at = (_evidence(dataset, one, rows) for one in (first, second))
    return cascade_of(
        name=name,
        first=first,
        second=second,
        level=float(np.quantile(judged, pass_share, method="inverted_cdf")),
        floor=float(looked_at.min()),
        aggregator=aggregator,
    )


def _evidence(dataset: Dataset, detector: Detector, rows: Int64) -> Float32:
    """Evidence of *detector* on *rows*, some at a time."""
    hook_points = {projection.hook_point for projection in detector.projections}
    parts = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        parts.append(
            score(detector, {h: dataset.activations[h][some] for h in hook_points})
        )
    return np.concatenate(parts)
