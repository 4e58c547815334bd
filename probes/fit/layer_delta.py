"""Fits layer-delta consistency on the differences between layers at benign tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sklearn.covariance import LedoitWolf

from probes.aggregate import Aggregator
from probes.arrays import Float64, Int64
from probes.dataset import Dataset
from probes.detector import check_aggregator
from probes.fit.select import rows_of_requests, subsample
from probes.layer_delta import LayerDelta
from probes.layer_directions import LayerDeltaDirections
from probes.layer_scores import LayerScores, check_rising

# Rows whose differences are in memory at once: 128 MiB at d_model 4096.
_ROWS_AT_ONCE = 4096


def fit_layer_delta(
    dataset: Dataset,
    *,
    name: str,
    hook_points: Sequence[str],
    benign: Sequence[int],
    aggregator: Aggregator,
    rank: int | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
) -> LayerDelta | LayerDeltaDirections:
    """
    Fit what benign tokens' activations do from one hook point to the next.

    Mean and deviation of each coordinate of a difference; mean and deviation of the
    standardised differences' lengths; the precision of these over the layers, shrunk
    as Ledoit and Wolf (2004) derive (LCF, arXiv 2604.24542).

    Args:
        dataset: Has activations at *hook_points*.

        name: Of the detector.

        hook_points: Where it reads, by rising layer, two or more.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        rank: Principal directions of each standardised difference that are measured,
            1 to d_model, from columns; the whole differences by default, which need
            whole activations.

        max_rows: At most this many tokens, drawn at random.

        seed: Of that draw.

    Raises:
        ValueError: Fewer than two benign tokens, a coordinate or a length that never
            varies, hook points that do not rise, or *rank* is out of range.
    """
    what = f"detector {name!r}"
    check_rising(what, hook_points)
    check_aggregator(what, aggregator, 1)
    d_model = dataset.activations[hook_points[0]].shape[1]
    if rank is not None and not 1 <= rank <= d_model:
        raise ValueError(f"rank: expected 1 to {d_model}, got {rank}")
    counted = rows_of_requests(dataset, benign, aggregator.tokens)
    rows = subsample(counted, max_rows, seed)
    if len(rows) < 2:
        raise ValueError(f"{what}: expected benign tokens, got {len(rows)}")
    pairs = [
        _Pair.of(what, dataset, lower, upper, rows, rank)
        for lower, upper in pairwise(hook_points)
    ]
    scores = _scores(what, np.stack([pair.lengths for pair in pairs], axis=1))
    if rank is None:
        return LayerDelta(
            name=name,
            hook_points=tuple(hook_points),
            means=np.stack([pair.mean for pair in pairs]).astype(np.float32),
            deviations=np.stack([pair.deviation for pair in pairs]).astype(np.float32),
            scores=scores,
            aggregator=aggregator,
        )
    along = [pair.directions / pair.deviation for pair in pairs]
    offsets = [a @ pair.mean for a, pair in zip(along, pairs, strict=True)]
    return LayerDeltaDirections(
        name=name,
        hook_points=tuple(hook_points),
        rows=np.stack(along).astype(np.float32),
        offsets=np.stack(offsets).astype(np.float32),
        scores=scores,
        aggregator=aggregator,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pair:
    """
    The differences between two hook points, over some rows.

    Attributes:
        mean: Of shape (d_model,).

        deviation: Of shape (d_model,), positive.

        directions: Principal ones of what is standardised, (k, d_model); k is 0 where
            all of it is measured.

        lengths: Of what is standardised, along *directions* if there are any, (n,).
    """

    mean: Float64
    deviation: Float64
    directions: Float64
    lengths: Float64

    @classmethod
    def of(
        cls,
        what: str,
        dataset: Dataset,
        lower: str,
        upper: str,
        rows: Int64,
        rank: int | None,
    ) -> "_Pair":
        mean, deviation = _moments(_deltas(dataset, lower, upper, rows))
        if not (deviation > 0).all():
            constant = np.flatnonzero(deviation <= 0)[:8].tolist()
            raise ValueError(
                f"{what}: expected differences from {lower} to {upper} that vary in "
                f"each coordinate, got constant ones: {constant}"
            )
        directions = np.empty((0, len(mean)))
        if rank is not None:
            products = np.zeros((len(mean), len(mean)))
            for delta in _deltas(dataset, lower, upper, rows):
                standard = (delta - mean) / deviation
                products += standard.T @ standard
            # `eigh` sorts by rising eigenvalue.
            directions = np.linalg.eigh(products)[1][:, ::-1][:, :rank].T
        lengths: list[Float64] = []
        for delta in _deltas(dataset, lower, upper, rows):
            standard = (delta - mean) / deviation
            seen = standard if rank is None else standard @ directions.T
            lengths.append(np.linalg.norm(seen, axis=1))
        return cls(
            mean=mean,
            deviation=deviation,
            directions=directions,
            lengths=np.concatenate(lengths),
        )


def _deltas(dataset: Dataset, lower: str, upper: str, rows: Int64) -> Iterator[Float64]:
    """What is added from *lower* to *upper*, some rows at a time."""
    before, after = dataset.activations[lower], dataset.activations[upper]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        yield after[some].astype(np.float64) - before[some]


def _moments(parts: Iterator[Float64]) -> tuple[Float64, Float64]:
    """Mean and deviation of each column of *parts*, one below another."""
    first = next(parts)
    # Sums of x - c for a c near the mean: else a variance would cancel.
    shift = first.mean(axis=0)
    count, total, squares = 0, np.zeros_like(shift), np.zeros_like(shift)
    for part in (first, *parts):
        shifted = part - shift
        count += len(part)
        total += shifted.sum(axis=0)
        squares += (shifted**2).sum(axis=0)
    offset = total / count
    variance = (squares - count * offset**2) / (count - 1)
    return shift + offset, np.sqrt(np.maximum(variance, 0))


def _scores(what: str, lengths: Float64) -> LayerScores:
    """What is benign of *lengths* of shape (n, L)."""
    means, deviations = lengths.mean(axis=0), lengths.std(axis=0, ddof=1)
    if not (deviations > 1e-9 * means).all():
        raise ValueError(f"{what}: expected tokens that differ, got the same length")
    standard = (lengths - means) / deviations
    covariance = LedoitWolf(assume_centered=True).fit(standard).covariance_
    variances, vectors = np.linalg.eigh(covariance)
    # Layers that say the same have a variance of zero between them, or just below.
    floored = np.maximum(variances, 1e-6 * variances.mean())
    return LayerScores(
        means=means.astype(np.float32),
        deviations=deviations.astype(np.float32),
        factor=(vectors / np.sqrt(floored)).astype(np.float32),
    )
