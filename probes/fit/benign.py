"""Fits anomaly detectors that have seen no example of what they look for."""

from collections.abc import Sequence

import numpy as np
from sklearn.covariance import LedoitWolf

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64
from probes.dataset import Dataset
from probes.fit.mahalanobis import fit_mahalanobis
from probes.fit.select import rows_of_requests, subsample
from probes.knn import NearestNeighbours
from probes.mahalanobis import Mahalanobis
from probes.relative import RelativeMahalanobis


def fit_diagonal(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    max_rows: int = 50_000,
    seed: int = 0,
) -> Mahalanobis:
    """
    Fit a Mahalanobis distance whose covariance is diagonal.

    Each coordinate of the residual stream has a variance of its own and none is
    related to another: d_model columns, and nothing to invert.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        max_rows: At most this many tokens, drawn at random.

        seed: Of that draw.

    Raises:
        ValueError: Fewer than two benign tokens, or a coordinate that never varies.
    """
    rows = _rows(dataset, name, hook_point, benign, aggregator, max_rows, seed)
    wide = rows.astype(np.float64)
    variances = wide.var(axis=0, ddof=1)
    if not (variances > 0).all():
        constant = np.flatnonzero(variances <= 0)[:8].tolist()
        raise ValueError(
            f"detector {name!r}: expected coordinates that vary, "
            f"got constant ones: {constant}"
        )
    return Mahalanobis(
        name=name,
        hook_point=hook_point,
        mean=wide.mean(axis=0).astype(np.float32),
        directions=np.eye(wide.shape[1], dtype=np.float32),
        variances=variances.astype(np.float32),
        residual_variance=1.0,
        aggregator=aggregator,
    )


def fit_relative(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    background: Sequence[int],
    aggregator: Aggregator,
    rank: int | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
) -> RelativeMahalanobis:
    """
    Fit a relative Mahalanobis distance: of *benign* against *background* requests.

    Arguments and errors as of `fit_mahalanobis`; *background* are indices of requests
    of every kind, the benign ones among them.
    """

    def fitted(indices: Sequence[int], suffix: str) -> Mahalanobis:
        return fit_mahalanobis(
            dataset,
            name=f"{name}-{suffix}"[:64],
            hook_point=hook_point,
            benign=indices,
            aggregator=aggregator,
            rank=rank,
            max_rows=max_rows,
            seed=seed,
        )

    return RelativeMahalanobis(
        name=name,
        served=fitted(benign, "served"),
        background=fitted(background, "background"),
        aggregator=aggregator,
    )


def fit_nearest(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    n_coreset: int = 64,
    k: int = 1,
    is_normalised: bool = True,
    max_rows: int = 20_000,
    seed: int = 0,
) -> NearestNeighbours:
    """
    Choose a coreset of the benign tokens by greedy k-centres.

    Each next one is the token farthest from those chosen (Gonzalez 1985), which is at
    most twice as far from the worst token as the best choice there is.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        n_coreset: Tokens that are kept; as many columns.

        k: Which nearest one counts.

        is_normalised: Whether directions are compared.

        max_rows: At most this many tokens are chosen from, drawn at random.

        seed: Of that draw, and of the first token.

    Raises:
        ValueError: Fewer benign tokens than *n_coreset*, or *k* is above it.
    """
    rows = _rows(dataset, name, hook_point, benign, aggregator, max_rows, seed)
    wide = rows.astype(np.float64)
    if is_normalised:
        lengths = np.linalg.norm(wide, axis=1)
        wide = wide[lengths > 0] / lengths[lengths > 0, None]
    if len(wide) < n_coreset:
        raise ValueError(
            f"detector {name!r}: n_coreset: expected at most the {len(wide)} benign "
            f"tokens, got {n_coreset}"
        )
    chosen = _k_centres(wide, n_coreset, seed)
    return NearestNeighbours(
        name=name,
        hook_point=hook_point,
        coreset=wide[chosen].astype(np.float32),
        k=k,
        is_normalised=is_normalised,
        aggregator=aggregator,
    )


def fit_que(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    traffic: Sequence[int],
    aggregator: Aggregator,
    alpha: float = 4.0,
    rank: int | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
) -> Mahalanobis:
    """
    Fit quantum entropy scores: odd in the directions in which *traffic* is odd.

    The tokens of unlabelled *traffic* are whitened by the benign mean and covariance;
    with S their covariance there, a token z scores (Dong et al. 2019, arXiv 1906.11366,
    the canonical form)

        z' exp(alpha (S - I) / (||S|| - 1)) z

    One positive semidefinite form in x, precomputed: a Mahalanobis distance in another
    metric, and stored as one.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        traffic: Indices of requests that may hold others.

        aggregator: Of the detector.

        alpha: 0 is the Mahalanobis distance; large looks along one direction only.

        rank: Directions kept, 1 to d_model; all by default.

        max_rows: At most this many tokens of each, drawn at random.

        seed: Of the draws.

    Raises:
        ValueError: Too few tokens, *alpha* below 0, or *rank* out of range.
    """
    trusted = _rows(dataset, name, hook_point, benign, aggregator, max_rows, seed)
    untrusted = _rows(dataset, name, hook_point, traffic, aggregator, max_rows, seed)
    mean, form = que_form(
        trusted.astype(np.float64), untrusted.astype(np.float64), alpha
    )
    d_model = len(mean)
    if rank is not None and not 1 <= rank <= d_model:
        raise ValueError(f"rank: expected 1 to {d_model}, got {rank}")
    weights, vectors = np.linalg.eigh(form)
    order = np.argsort(-weights, kind="stable")
    kept, rest = order[:rank], order[d_model if rank is None else rank :]
    return Mahalanobis(
        name=name,
        hook_point=hook_point,
        mean=mean.astype(np.float32),
        directions=np.ascontiguousarray(vectors[:, kept].T, dtype=np.float32),
        variances=(1 / weights[kept]).astype(np.float32),
        residual_variance=float(1 / weights[rest].mean()) if len(rest) else 1.0,
        aggregator=aggregator,
    )


def que_form(
    trusted: Float64, untrusted: Float64, alpha: float
) -> tuple[Float64, Float64]:
    """
    Return the benign mean (d_model,) and the form Q (d_model, d_model) of `fit_que`.

    A token scores (x - mean)' Q (x - mean), Q symmetric and positive definite.

    Args:
        trusted: Benign tokens, (n, d_model).

        untrusted: Unlabelled tokens, (m, d_model).

        alpha: As in `fit_que`.

    Raises:
        ValueError: *alpha* is below 0.
    """
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha: expected a number of at least 0, got {alpha}")
    model = LedoitWolf().fit(trusted)
    variances, vectors = np.linalg.eigh(model.covariance_)
    whiten = vectors / np.sqrt(variances) @ vectors.T
    white = (untrusted - model.location_) @ whiten
    spread, axes = np.linalg.eigh(white.T @ white / len(white))
    # Traffic like the benign has no direction to look along.
    excess = (spread - 1) / max(spread[-1] - 1, 1e-6 * spread[-1])
    weigh = axes * np.exp(alpha * np.clip(excess, -1, 1)) @ axes.T
    form = whiten @ weigh @ whiten
    return model.location_, (form + form.T) / 2


def _rows(
    dataset: Dataset,
    name: str,
    hook_point: str,
    requests: Sequence[int],
    aggregator: Aggregator,
    max_rows: int,
    seed: int,
) -> Float32:
    """Some of the tokens that count of *requests*, (n, d_model), two or more."""
    counted = rows_of_requests(dataset, requests, aggregator.tokens)
    rows = subsample(counted, max_rows, seed)
    if len(rows) < 2:
        raise ValueError(f"detector {name!r}: expected benign tokens, got {len(rows)}")
    return dataset.activations[hook_point][rows]


def _k_centres(rows: Float64, n: int, seed: int) -> list[int]:
    chosen = [int(np.random.default_rng(seed).integers(len(rows)))]
    distance = np.full(len(rows), np.inf)
    while len(chosen) < n:
        offset = rows - rows[chosen[-1]]
        distance = np.minimum(distance, np.einsum("nd,nd->n", offset, offset))
        chosen.append(int(distance.argmax()))
    return chosen
