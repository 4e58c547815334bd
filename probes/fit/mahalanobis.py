"""Fits a Mahalanobis detector on benign token activations."""

from collections.abc import Sequence

import numpy as np
from sklearn.covariance import LedoitWolf

from probes.aggregate import Aggregator
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
    d_model = activations.shape[1]
    k = d_model if rank is None else rank
    if not 1 <= k <= d_model:
        raise ValueError(f"rank: expected 1 to {d_model}, got {rank}")
    counted = rows_of_requests(dataset, benign, aggregator.tokens)
    rows = subsample(counted, max_rows, seed)
    if len(rows) < 2:
        raise ValueError(f"detector {name!r}: expected benign tokens, got {len(rows)}")
    model = LedoitWolf().fit(activations[rows].astype(np.float64))
    variances, vectors = np.linalg.eigh(model.covariance_)
    order = np.argsort(-variances, kind="stable")
    kept, rest = order[:k], order[k:]
    return Mahalanobis(
        name=name,
        hook_point=hook_point,
        mean=model.location_.astype(np.float32),
        directions=np.ascontiguousarray(vectors[:, kept].T, dtype=np.float32),
        variances=variances[kept].astype(np.float32),
        residual_variance=float(variances[rest].mean()) if len(rest) else 1.0,
        aggregator=aggregator,
    )
