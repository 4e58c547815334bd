# Every direction points to the suspicious side, and its bias puts zero halfway between
# the means of the two classes, so that evidence above zero is nearer the positive one.
"""Directions from means: mass-mean, LDA, contrast pairs, personas."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64, Int64
from probes.dataset import Dataset, Label
from probes.fit.bags import Bags
from probes.fit.logistic import LogisticOptions, separate
from probes.fit.moments import Moments
from probes.fit.select import rows_of_tokens, subsample
from probes.linear import LinearProbe
from probes.multilayer import MultiLayerProbe

CONTRASTS = ("mean", "principal")


def mass_mean_direction(
    name: str, positive: Float64, negative: Float64
) -> tuple[Float64, float]:
    """
    The difference of two means, and the bias that puts zero halfway.

    theta = mu+ - mu-; Marks and Tegmark, arXiv 2310.06824.

    Raises:
        ValueError: The means are the same.
    """
    weight = positive - negative
    if not weight.any():
        raise ValueError(f"probe {name!r}: expected different means, got the same")
    return weight, _halfway(weight, positive, negative)


def lda_direction(
    name: str, positive: Moments, negative: Moments, both: Moments
) -> tuple[Float64, float]:
    """
    Linear discriminant analysis: the mass-mean whitened within the classes.

    w = S^-1 (mu+ - mu-), S the covariance within classes. What is gathered is the
    covariance of all rows, shrunk after Ledoit and Wolf (2004); within the classes it
    is less by a multiple of dd', d = mu+ - mu-, which scales w and does not turn it
    (Sherman and Morrison 1950). Evidence is a log likelihood ratio of two Gaussians,
    both classes as likely.

    Args:
        name: Of the probe.

        positive: Moments of the positive rows.

        negative: Moments of the negative rows.

        both: Of all of them, with covariance.

    Raises:
        ValueError: The means are the same, or a class has too few rows.
    """
    difference, _ = mass_mean_direction(name, positive.mean, negative.mean)
    covariance = both.shrunk_covariance()
    # A floor far below what matters, so that a dimension that never moves is no zero.
    floor = 1e-9 * float(both.variance.mean())
    covariance.flat[:: len(covariance) + 1] += floor
    solved = np.linalg.solve(covariance, difference)
    share = positive.n_rows * negative.n_rows / both.n_rows**2
    within = 1 - (1 - both.shrinkage) * share * float(difference @ solved)
    if within <= 0:
        raise ValueError(
            f"probe {name!r}: expected tokens that differ within a class, "
            f"got {positive.n_rows} positive and {negative.n_rows} negative"
        )
    weight: Float64 = (solved / within).astype(np.float64)
    return weight, _halfway(weight, positive.mean, negative.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastOptions:
    """
    A direction from pairs of requests that differ in one thing.

    Attributes:
        pair: Label whose value a positive and a negative request share.

        direction: ``mean`` of the pairs' differences (contrastive activation
            addition, Rimsky et al., arXiv 2312.06681; persona vectors, Chen et al.,
            arXiv 2507.21509), or their first ``principal`` component through zero
            (representation engineering, Zou et al., arXiv 2310.01405).

        tokens: Tokens of a request whose mean is taken; "all" is all that count.
    """

    pair: str
    direction: str = "mean"
    tokens: str = "all"

    def __post_init__(self) -> None:
        if self.direction not in CONTRASTS:
            raise ValueError(
                f"direction: expected one of {list(CONTRASTS)}, got {self.direction!r}"
            )


def fit_contrast(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    positive: Sequence[int],
    negative: Sequence[int],
    aggregator: Aggregator,
    options: ContrastOptions,
) -> LinearProbe:
    """
    Fit the direction in which the two requests of a pair differ.

    Several requests of one side of a pair count as their mean.

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the probe.

        hook_point: Where it reads.

        positive: Indices of requests that show the behaviour.

        negative: Indices of requests that do not.

        aggregator: Of the probe.

        options: See `ContrastOptions`.

    Raises:
        ValueError: There is no whole pair, or the pairs do not differ.
    """
    tokens = aggregator.tokens if options.tokens == "all" else options.tokens
    sides = [
        _means_by(dataset, hook_point, indices, options.pair, tokens)
        for indices in (positive, negative)
    ]
    shared = sorted(sides[0].keys() & sides[1].keys(), key=repr)
    if not shared:
        raise ValueError(
            f"probe {name!r}: pair: expected a positive and a negative request that "
            f"share a value of {options.pair!r}, got {len(sides[0])} and "
            f"{len(sides[1])} values and none in both"
        )
    above, below = (np.stack([side[key] for key in shared]) for side in sides)
    weight, bias = mass_mean_direction(name, above.mean(axis=0), below.mean(axis=0))
    if options.direction == "principal":
        principal = np.linalg.svd(above - below, full_matrices=False)[2][0]
        # A component has no sign of its own: higher is more suspicious.
        weight = principal if principal @ weight >= 0 else -principal
        bias = _halfway(weight, above.mean(axis=0), below.mean(axis=0))
    probe = as_probe(name, (hook_point,), weight, bias, aggregator)
    assert isinstance(probe, LinearProbe)  # of one hook point
    return probe


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonaOptions:
    """
    A logistic regression within the space that personas span.

    Attributes:
        persona: Label whose values are the personas.

        n_components: Principal components of the personas' means that are kept.

        logistic: `tokens`, `inverse_regularisation`, `max_rows` and `seed` are used.
    """

    persona: str
    n_components: int
    logistic: LogisticOptions


def fit_persona(
    dataset: Dataset,
    *,
    name: str,
    hook_point: str,
    positive: Sequence[int],
    negative: Sequence[int],
    aggregator: Aggregator,
    options: PersonaOptions,
) -> LinearProbe:
    """
    Fit a direction in persona coordinates: w = P beta.

    P holds the principal components of the personas' mean activations, beta a logistic
    regression on the projections onto them (arXiv 2605.09391).

    Args:
        dataset: Has activations at *hook_point*.

        name: Of the probe.

        hook_point: Where it reads.

        positive: Indices of requests that show the behaviour.

        negative: Indices of requests that do not.

        aggregator: Of the probe.

        options: See `PersonaOptions`.

    Raises:
        ValueError: A class has no tokens, or there are fewer independent persona
            vectors than components.
    """
    bags = Bags.of(
        dataset,
        name=name,
        positive=positive,
        negative=negative,
        counted=aggregator.tokens,
        tokens=options.logistic.tokens,
    )
    everyone = range(len(dataset.requests))
    means = _means_by(dataset, hook_point, everyone, options.persona, aggregator.tokens)
    personas = np.stack([*means.values()]) if means else np.empty((0, 1))
    n_most = min(len(personas) - 1, personas.shape[1])
    if not 1 <= options.n_components <= n_most:
        raise ValueError(
            f"n_components: expected 1 to {max(n_most, 0)} of {len(personas)} values "
            f"of {options.persona!r}, got {options.n_components}"
        )
    centred = personas - personas.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)[2][: options.n_components]
    activations = dataset.activations[hook_point]
    drawn = [
        subsample(
            np.concatenate(kind), options.logistic.max_rows, options.logistic.seed
        )
        for kind in (bags.positive, bags.negative)
    ]
    above, below = (_projected(activations, rows, components) for rows in drawn)
    beta, bias = separate(above, below, options.logistic)
    probe = as_probe(name, (hook_point,), beta @ components, bias, aggregator)
    assert isinstance(probe, LinearProbe)  # of one hook point
    return probe


def as_probe(
    name: str,
    hook_points: tuple[str, ...],
    weight: Float64,
    bias: float,
    aggregator: Aggregator,
) -> LinearProbe | MultiLayerProbe:
    """The probe with direction *weight*, hook point after hook point."""
    if len(hook_points) == 1:
        return LinearProbe(
            name=name,
            hook_point=hook_points[0],
            weight=weight.astype(np.float32),
            bias=bias,
            aggregator=aggregator,
        )
    return MultiLayerProbe(
        name=name,
        hook_points=hook_points,
        weights=weight.reshape(len(hook_points), -1).astype(np.float32),
        bias=bias,
        aggregator=aggregator,
    )


def _halfway(weight: Float64, positive: Float64, negative: Float64) -> float:
    return -float(weight @ (positive + negative)) / 2


def _means_by(
    dataset: Dataset, hook_point: str, indices: Sequence[int], label: str, tokens: str
) -> dict[Label, Float64]:
    """Mean over the requests that share a value of *label*, of their tokens' mean."""
    sums: dict[Label, Float64] = {}
    counts: dict[Label, int] = {}
    for index in sorted(indices):
        value = dataset.requests[index].labels.get(label)
        rows = rows_of_tokens(dataset, index, tokens)
        if value is None or not len(rows):
            continue
        mean = dataset.activations[hook_point][rows].mean(axis=0, dtype=np.float64)
        sums[value] = sums[value] + mean if value in sums else mean
        counts[value] = counts.get(value, 0) + 1
    return {value: total / counts[value] for value, total in sums.items()}


def _projected(activations: Float32, rows: Int64, components: Float64) -> Float64:
    """*rows* on *components*, a bounded number of rows at a time."""
    parts = np.array_split(rows, 1 + len(rows) // 4096)
    return np.concatenate([activations[part] @ components.T for part in parts])
