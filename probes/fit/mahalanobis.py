"""Fits a Mahalanobis detector on benign token activations."""

from collections.abc import Sequence

import numpy as np
from sklearn.covariance import LedoitWolf

from probes.aggregate import Aggregator
from probes.arrays import Float64
from probes.dataset import Dataset
from probes.fit.select import rows_of_requests, subsample
from probes.mahalanobis import Mahalanobis


def fit_mahalanobis(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    rank: int | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
) -> Mahalanobis:
    """
    Fit mean and covariance of the tokens of *benign* requests that count.

    The covariance is shrunk as Ledoit and Wolf (2004) derive; its *rank* largest
    directions are kept, and the others share their mean variance.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        rank: Directions kept, 1 to d_model; all by default.

        max_rows: At most this many tokens, drawn at random.

        seed: Of that draw.

    Raises:
        ValueError: Fewer than two benign tokens, tokens that are all the same, or
            *rank* is out of range.
    """
    activations = dataset.activations[hook_point]
    _check_rank(rank, activations.shape[1])
    counted = rows_of_requests(dataset, benign, aggregator.tokens)
    rows = subsample(counted, max_rows, seed)
    _check_tokens(name, len(rows))
    model = LedoitWolf().fit(activations[rows].astype(np.float64))
    return from_covariance(
        name=name,
        hook_point=hook_point,
        mean=model.location_,
        covariance=model.covariance_,
        n_rows=len(rows),
        aggregator=aggregator,
        rank=rank,
    )


def from_covariance(
    *,
    name: str,
    hook_point: str,
    mean: Float64,
    covariance: Float64,
    n_rows: int,
    aggregator: Aggregator,
    rank: int | None = None,
) -> Mahalanobis:
    """
    The detector of a benign mean and covariance.

    Args:
        name: Of the detector.

        hook_point: Where it reads.

        mean: Of shape (d_model,).

        covariance: Of shape (d_model, d_model), shrunk.

        n_rows: How many tokens they were taken from.

        aggregator: Of the detector.

        rank: Directions kept, 1 to d_model; all by default.

    Raises:
        ValueError: As `fit_mahalanobis`.
    """
    _check_tokens(name, n_rows)
    _check_rank(rank, len(mean))
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")
    kept, rest = order[:rank], order[len(mean) if rank is None else rank :]
    return Mahalanobis(
        name=name,
        hook_point=hook_point,
        mean=mean.astype(np.float32),
        directions=np.ascontiguousarray(vectors[:, kept].T, dtype=np.float32),
        variances=variances[kept].astype(np.float32),
        residual_variance=float(variances[rest].mean()) if len(rest) else 1.0,
        aggregator=aggregator,
    )


def _check_rank(rank: int | None, d_model: int) -> None:
    if rank is not None and not 1 <= rank <= d_model:
        raise ValueError(f"rank: expected 1 to {d_model}, got {rank}")


def _check_tokens(name: str, n_rows: int) -> None:
    if n_rows < 2:
        raise ValueError(f"detector {name!r}: expected benign tokens, got {n_rows}")
