# scikit-learn's conventions end in this file: `score_samples` is lower for what is
# odd, and evidence is higher.
"""Anomaly detectors of scikit-learn, for comparison with ours; they are not stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64
from probes.dataset import Dataset
from probes.detector import (
    Projection,
    activations_at,
    check_aggregator,
    check_columns,
    check_name,
)
from probes.errors import ActivationShapeError
from probes.fit.select import rows_of_requests, subsample
from probes.relu import as_evidence


class OutlierModel(Protocol):
    """What is used of a fitted model."""

    def score_samples(self, rows: Float64) -> Float64:
        """How usual each of *rows* (n, d_model) is, (n,); lower is odder."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LibraryDetector:
    """
    A fitted outlier model as a detector: evidence is minus its `score_samples`.

    It reads whole activations (see `probes.detector.ActivationDetector`) and costs a
    walk through its trees, or a distance to each of its tokens. `probes.codec.pack`
    refuses it: a pickle is no bundle.

    Attributes:
        name: Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        d_model: Width of what it was fitted on.

        model: The model.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    d_model: int
    model: OutlierModel
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_aggregator(f"detector {self.name!r}", self.aggregator, 1)
        # Nothing linear is wanted. A row of zeros tells finite activations from others.
        projection = Projection(
            hook_point=self.hook_point,
            weight=np.zeros((1, self.d_model), dtype=np.float32),
            bias=np.zeros(1, dtype=np.float32),
        )
        object.__setattr__(self, "projections", (projection,))

    def head(self, columns: Float32) -> NoReturn:
        """
        Refuse: see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: Always.
        """
        check_columns(self, columns)
        raise ActivationShapeError(
            f"detector {self.name!r} expects whole activations: "
            f"{type(self.model).__name__} knows nothing else"
        )

    def head_on_activations(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Float32:
        """
        Evidence of each token; see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: The arrays do not fit.
        """
        check_columns(self, columns)
        rows = activations_at(self.hook_point, self.d_model, activations)
        if len(rows) != len(columns):
            raise ActivationShapeError(
                f"detector {self.name!r} expects as many activations as columns, "
                f"got {len(rows)} and {len(columns)}"
            )
        evidence = np.full((len(rows), 1), np.nan, dtype=np.float32)
        # scikit-learn takes neither NaN nor a batch without rows.
        is_finite = np.isfinite(rows).all(axis=1)
        if is_finite.any():
            usual = self.model.score_samples(rows[is_finite].astype(np.float64))
            evidence[is_finite, 0] = as_evidence(-usual)
        return evidence


def fit_isolation_forest(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    n_trees: int = 100,
    max_rows: int = 50_000,
    seed: int = 0,
) -> LibraryDetector:
    """
    Fit an isolation forest (Liu et al. 2008): what few random cuts set apart is odd.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        n_trees: How many trees, each of 256 tokens.

        max_rows: At most this many tokens, drawn at random.

        seed: Of that draw, and of the trees.

    Raises:
        ValueError: Fewer than two benign tokens.
    """
    rows = _rows(dataset, name, hook_point, benign, aggregator, max_rows, seed)
    model = IsolationForest(n_estimators=n_trees, random_state=seed).fit(rows)
    return _detector(name, hook_point, rows, model, aggregator)


def fit_lof(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    k: int = 20,
    is_standardised: bool = True,
    max_rows: int = 5_000,
    seed: int = 0,
) -> LibraryDetector:
    """
    Fit a local outlier factor (Breunig et al. 2000): odd is what lies less densely.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        k: How many neighbours density is measured by.

        is_standardised: Whether each coordinate is first brought to deviation 1.

        max_rows: At most this many tokens are kept, drawn at random.

        seed: Of that draw.

    Raises:
        ValueError: Fewer benign tokens than *k* and one.
    """
    rows = _rows(dataset, name, hook_point, benign, aggregator, max_rows, seed)
    if not 1 <= k < len(rows):
        raise ValueError(
            f"detector {name!r}: k: expected 1 to {len(rows) - 1}, below the number "
            f"of benign tokens, got {k}"
        )
    model = LocalOutlierFactor(n_neighbors=k, novelty=True)
    return _detector(
        name, hook_point, rows, _fitted(model, rows, is_standardised), aggregator
    )


def fit_one_class_svm(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    nu: float = 0.1,
    is_standardised: bool = True,
    max_rows: int = 5_000,
    seed: int = 0,
) -> LibraryDetector:
    """
    Fit a one-class SVM (Schoelkopf et al. 2001) with a Gaussian kernel.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the detector.

        hook_point: Where it reads.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        nu: Share of the benign tokens that may lie outside, in (0, 1].

        is_standardised: Whether each coordinate is first brought to deviation 1.

        max_rows: At most this many tokens, drawn at random; time is quadratic in it.

        seed: Of that draw.

    Raises:
        ValueError: Fewer than two benign tokens, or *nu* is out of range.
    """
    if not 0 < nu <= 1:
        raise ValueError(f"nu: expected a number in (0, 1], got {nu}")
    rows = _rows(dataset, name, hook_point, benign, aggregator, max_rows, seed)
    model = OneClassSVM(nu=nu, gamma="scale")
    return _detector(
        name, hook_point, rows, _fitted(model, rows, is_standardised), aggregator
    )


def _fitted(
    model: LocalOutlierFactor | OneClassSVM, rows: Float64, is_standardised: bool
) -> OutlierModel:
    """*model* fitted on *rows*, with a scaler before it if one is wanted."""
    whole = make_pipeline(StandardScaler(), model) if is_standardised else model
    fitted: OutlierModel = whole.fit(rows)
    return fitted


def _rows(
    dataset: Dataset,
    name: str,
    hook_point: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    max_rows: int,
    seed: int,
) -> Float64:
    """Some of the benign tokens that count, (n, d_model), two or more."""
    counted = rows_of_requests(dataset, benign, aggregator.tokens)
    rows = subsample(counted, max_rows, seed)
    if len(rows) < 2:
        raise ValueError(f"detector {name!r}: expected benign tokens, got {len(rows)}")
    return dataset.activations[hook_point][rows].astype(np.float64)


def _detector(
    name: str,
    hook_point: str,
    rows: Float64,
    model: OutlierModel,
    aggregator: Aggregator,
) -> LibraryDetector:
    return LibraryDetector(
        name=name,
        hook_point=hook_point,
        d_model=rows.shape[1],
        model=model,
        aggregator=aggregator,
    )
