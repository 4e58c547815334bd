# scikit-learn's conventions end in this file: `decision_function` is already
# higher for the positive class, and its scaler is folded into the direction.
"""Fits a linear probe by logistic regression on token activations."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64, Int64
from probes.dataset import Dataset
from probes.fit.select import rows_of_requests, rows_of_tokens, subsample
from probes.linear import LinearProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticOptions:
    """
    How a probe is fitted.

    Attributes:
        tokens: Which tokens of a positive request are taken to show the
            behaviour: ``all``, ``completion`` or ``prompt_end``. Of a negative
            request it is always all, since all are scored when it is served.

        rounds: How often to fit. A label holds for a request, but only some of
            its tokens show it; from the second round on the fit keeps of each
            positive request the tokens that the last one scored highest
            (multiple-instance learning, Andrews et al. 2002).

        keep: Share of a positive request's tokens kept, in (0, 1]; at least one.

        inverse_regularisation: scikit-learn's C; smaller is stronger.

        max_rows: At most this many rows of each class, drawn at random.

        seed: Of that draw.
    """

    tokens: str = "all"
    rounds: int = 2
    keep: float = 0.25
    inverse_regularisation: float = 1.0
    max_rows: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a number in (0, 1], got {self.keep}")
        if not self.inverse_regularisation > 0:
            raise ValueError(
                f"inverse_regularisation: expected a positive number, "
                f"got {self.inverse_regularisation}"
            )
        if self.max_rows < 1:
            raise ValueError(f"max_rows: expected at least 1, got {self.max_rows}")


def fit_logistic(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    positive: Sequence[int],
    negative: Sequence[int],
    aggregator: Aggregator,
    options: LogisticOptions | None = None,
) -> LinearProbe:
    """
    Fit a direction that separates the tokens of two sets of requests.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the probe.

        hook_point: Where it reads.

        positive: Indices of requests that show the behaviour.

        negative: Indices of requests that do not.

        aggregator: Of the probe.

        options: See `LogisticOptions`.

    Returns:
        A probe on raw activations; its evidence is a logit, both classes weighing
        the same.

    Raises:
        ValueError: A class has no tokens.
    """
    options = options or LogisticOptions()
    activations = dataset.activations[hook_point]
    # What the aggregator leaves out is no example of anything.
    counted = aggregator.tokens
    wanted = counted if options.tokens == "all" else options.tokens
    bags = [
        rows
        for index in sorted(positive)
        if len(rows := rows_of_tokens(dataset, index, wanted))
    ]
    negative_rows = rows_of_requests(dataset, negative, counted)
    if not bags or not len(negative_rows):
        raise ValueError(
            f"probe {name!r}: expected tokens of both kinds, got {len(bags)} positive "
            f"requests with {wanted!r} tokens and {len(negative_rows)} "
            f"negative tokens"
        )
    negative_rows = subsample(negative_rows, options.max_rows, options.seed)
    negatives = activations[negative_rows]
    weight, bias = separate_bags(activations, bags, negatives, options)
    return LinearProbe(
        name=name,
        hook_point=hook_point,
        weight=weight.astype(np.float32),
        bias=bias,
        aggregator=aggregator,
    )


def separate_bags(
    activations: Float32 | Float64,
    bags: Sequence[Int64],
    negatives: Float32 | Float64,
    options: LogisticOptions,
) -> tuple[Float64, float]:
    """
    Direction and bias between the rows of *bags* and *negatives*, in rounds.

    Args:
        activations: Of shape (n_rows, d).

        bags: Rows of each positive request, some each.

        negatives: Of shape (n_negative, d).

        options: See `LogisticOptions`.
    """
    weight, bias = _fit_bags(activations, bags, negatives, options)
    for _ in range(options.rounds - 1):
        tops = [_top(activations, rows, weight, options.keep) for rows in bags]
        weight, bias = _fit_bags(activations, tops, negatives, options)
    return weight, bias


def _fit_bags(
    activations: Float32 | Float64,
    bags: Sequence[Int64],
    negatives: Float32 | Float64,
    options: LogisticOptions,
) -> tuple[Float64, float]:
    rows = subsample(np.concatenate(bags), options.max_rows, options.seed)
    return separate(activations[rows], negatives, options)


def _top(
    activations: Float32 | Float64, rows: Int64, weight: Float64, keep: float
) -> Int64:
    n_kept = max(1, round(keep * len(rows)))
    scores = activations[rows] @ weight
    return np.sort(rows[np.argsort(-scores, kind="stable")[:n_kept]])


def separate(
    positives: Float32 | Float64,
    negatives: Float32 | Float64,
    options: LogisticOptions,
) -> tuple[Float64, float]:
    """
    Direction and bias on rows as they are, the scaler folded in.

    Args:
        positives: Of shape (n_positive, d).

        negatives: Of shape (n_negative, d).

        options: `inverse_regularisation` is used.
    """
    rows = np.concatenate([positives, negatives]).astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    rows -= mean
    rows /= scale
    is_positive = np.arange(len(rows)) < len(positives)
    model = LogisticRegression(
        C=options.inverse_regularisation, class_weight="balanced", max_iter=5000
    )
    model.fit(rows, is_positive)
    weight: Float64 = model.coef_[0] / scale
    return weight, float(model.intercept_[0] - weight @ mean)
