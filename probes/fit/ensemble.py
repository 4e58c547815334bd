# Members are standardised and weighed on other requests than they were fitted on. On
# those every layer of a wide model separates perfectly, whatever it knows of others.
"""Fits linear probes at several hook points, and how they are combined."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, Int64
from probes.dataset import Dataset
from probes.ensemble import COMBINATIONS, Ensemble
from probes.fit.bags import Bags, rows_each
from probes.fit.logistic import LogisticOptions, separate_bags
from probes.fit.moments import Progress
from probes.fit.select import subsample
from probes.fit.streamed import StreamTask, fit_streamed
from probes.linear import LinearProbe

MEMBER_KINDS = ("logistic", "mass_mean", "lda")

# Rows of one hook point that are in memory at once: 64 MiB at d_model 4096.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleOptions:
    """
    How members are fitted and combined.

    Attributes:
        kind: How each member is fitted, one of `MEMBER_KINDS`.

        combination: As of `probes.ensemble.Ensemble`.

        held_out: Share of the requests of either kind, in (0, 1), that members are
            not fitted on: they are standardised there, and weighed.

        logistic: Of the members that are logistic regressions, and of the one on top;
            `max_rows` and `seed` of the latter only, `seed` of the split, too.
    """

    kind: str = "logistic"
    combination: str = "mean"
    held_out: float = 0.25
    logistic: LogisticOptions = field(default_factory=LogisticOptions)

    def __post_init__(self) -> None:
        if self.kind not in MEMBER_KINDS:
            raise ValueError(
                f"fit: expected one of {list(MEMBER_KINDS)}, got {self.kind!r}"
            )
        if self.combination not in COMBINATIONS:
            raise ValueError(
                f"combination: expected one of {list(COMBINATIONS)}, "
                f"got {self.combination!r}"
            )
        if not 0 < self.held_out < 1:
            raise ValueError(
                f"held_out: expected a number in (0, 1), got {self.held_out}"
            )


def fit_layer_ensemble(
    dataset: Dataset,
    *,
    name: str,
    hook_points: Sequence[str],
    positive: Sequence[int],
    negative: Sequence[int],
    aggregator: Aggregator,
    options: EnsembleOptions | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """
    Fit one probe at each of *hook_points*, in passes, and combine them.

    Args:
        dataset: Has activations at *hook_points*.

        name: Of the ensemble.

        hook_points: Where members read, two or more.

        positive: Indices of requests that show the behaviour.

        negative: Indices of requests that do not.

        aggregator: Of the ensemble; what it counts, members are fitted on.

        options: See `EnsembleOptions`.

        progress: Called with rows done in this pass, rows in all, and what is done.

    Raises:
        ValueError: A class has fewer than two requests, or no tokens.
    """
    options = options or EnsembleOptions()
    split = [
        _split(f"ensemble {name!r}", kind, options.held_out, options.logistic.seed)
        for kind in (positive, negative)
    ]
    bags = Bags.of(
        dataset,
        name=name,
        positive=split[0][0],
        negative=split[1][0],
        counted=aggregator.tokens,
        tokens=options.logistic.tokens,
    )
    tasks = [
        StreamTask(
            name=hook_point,
            kind=options.kind,
            hook_points=(hook_point,),
            positive=bags.positive,
            negative=bags.negative,
            aggregator=aggregator,
            logistic=options.logistic,
        )
        for hook_point in hook_points
    ]
    made = fit_streamed(dataset, tasks, progress=progress)
    return fit_ensemble(
        dataset,
        name=name,
        members=[one for one in made.values() if isinstance(one, LinearProbe)],
        positive=split[0][1],
        negative=split[1][1],
        aggregator=aggregator,
        combination=options.combination,
        options=options.logistic,
    )


def fit_ensemble(
    dataset: Dataset,
    *,
    name: str,
    members: Sequence[LinearProbe],
    negative: Sequence[int],
    aggregator: Aggregator,
    positive: Sequence[int] = (),
    combination: str = "mean",
    options: LogisticOptions | None = None,
) -> Ensemble:
    """
    Put *members*, from whatever fit, on one scale, and combine them.

    Args:
        dataset: Has activations at their hook points; best of other requests than
            they were fitted on.

        name: Of the ensemble.

        members: Two or more.

        negative: Indices of requests whose tokens give each member its mean and
            deviation.

        aggregator: Of the ensemble.

        positive: Indices of requests that show the behaviour, for ``logistic``.

        combination: As of `Ensemble`.

        options: Of the logistic regression on top, and `max_rows` and `seed` of the
            negative tokens.

    Raises:
        ValueError: Fewer than two members, a class has no tokens, or a member says
            the same of every negative token.
    """
    options = options or LogisticOptions()
    what = f"ensemble {name!r}"
    drawn = np.concatenate(
        [np.empty(0, np.int64), *rows_each(dataset, negative, aggregator.tokens)]
    )
    below = _columns(dataset, members, subsample(drawn, options.max_rows, options.seed))
    if len(below) < 2:
        raise ValueError(f"{what}: expected negative tokens, got {len(below)}")
    means, deviations = below.mean(axis=0), below.std(axis=0, ddof=1)
    if not (deviations > 0).all():
        constant = [members[i].hook_point for i in np.flatnonzero(deviations <= 0)]
        raise ValueError(
            f"{what}: expected members that tell negative tokens apart, "
            f"got constant ones at {constant}"
        )
    weights, bias = None, 0.0
    if combination == "logistic":
        tokens = aggregator.tokens if options.tokens == "all" else options.tokens
        bags = rows_each(dataset, positive, tokens)
        if not bags:
            raise ValueError(f"{what}: expected positive requests with tokens, got 0")
        above = _columns(dataset, members, np.concatenate(bags))
        found, bias = separate_bags(
            (above - means) / deviations,
            _numbered(bags),
            (below - means) / deviations,
            options,
        )
        weights = found.astype(np.float32)
    return Ensemble(
        name=name,
        hook_points=tuple(member.hook_point for member in members),
        weights=np.stack([member.weight for member in members]),
        biases=np.array([member.bias for member in members], dtype=np.float32),
        means=means.astype(np.float32),
        deviations=deviations.astype(np.float32),
        combination=combination,
        aggregator=aggregator,
        member_weights=weights,
        bias=bias,
    )


def _split(
    what: str, indices: Sequence[int], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Those of *indices* to fit on, and those held out."""
    if len(indices) < 2:
        raise ValueError(
            f"{what}: expected two or more requests of each kind, got {len(indices)}"
        )
    n_held = min(max(1, round(share * len(indices))), len(indices) - 1)
    order = np.random.default_rng(seed).permutation(sorted(indices)).tolist()
    return order[n_held:], order[:n_held]


def _columns(dataset: Dataset, members: Sequence[LinearProbe], rows: Int64) -> Float32:
    """What each member says of *rows*, (n_rows, n_members)."""
    columns = np.empty((len(rows), len(members)), dtype=np.float32)
    for index, member in enumerate(members):
        activations = dataset.activations[member.hook_point]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            columns[some, index] = activations[rows[some]] @ member.weight
        columns[:, index] += np.float32(member.bias)
    return columns


def _numbered(bags: Sequence[Int64]) -> list[Int64]:
    """The rows of *bags*, counted through from 0."""
    ends = np.cumsum([len(rows) for rows in bags])
    return [
        np.arange(end - len(rows), end, dtype=np.int64)
        for rows, end in zip(bags, ends, strict=True)
    ]
