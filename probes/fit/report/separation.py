"""How well scores tell one kind of request from benign ones."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from probes.arrays import Float64
from probes.fit.evaluate import auroc
from probes.fit.intervals import clopper_pearson
from probes.fit.report.scored import Scored, Share

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""At which recall is said."""

_MAX_POINTS = 400
_95_PERCENT = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """
    Which share is found, if the threshold were chosen on the very benign requests.

    Attributes:
        false_positive_rate: Of benign requests at most this share is above it.

        n_benign_needed: How many benign requests can tell such a rate.

        found: None where there are fewer.
    """

    false_positive_rate: float
    n_benign_needed: int
    found: Share | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """
    One detector (or the set) on one kind of request.

    Attributes:
        detector: Its name, or `ALL_DETECTORS`.

        kind: What is to be found.

        auroc: Against benign requests.

        auroc_low: Lower end of its 95 % interval; see `auroc_interval`.

        auroc_high: Its upper end.

        recall: At each of `FALSE_POSITIVE_RATES`.

        flagged: At the bundle's own boundary.

        roc_false_positive_rate: Of the ROC curve, rising.

        roc_recall: Of the ROC curve.
    """

    detector: str
    kind: str
    auroc: float
    auroc_low: float
    auroc_high: float
    recall: tuple[Recall, ...]
    flagged: Share
    roc_false_positive_rate: tuple[float, ...]
    roc_recall: tuple[float, ...]


def separations(scored: Scored, names: list[str]) -> list[Separation]:
    """Each column of `Scored.margins` on each kind that has answered requests."""
    benign = scored.margins[scored.of_kind(scored.benign)]
    found = []
    for column, name in enumerate(names):
        for kind in scored.other_kinds:
            positive = scored.margins[scored.of_kind(kind)]
            if len(positive) and len(benign):
                found.append(
                    separation(name, kind, positive[:, column], benign[:, column])
                )
    return found


def separation(
    detector: str, kind: str, positive: Float64, benign: Float64
) -> Separation:
    """*positive* and *benign* are margins, (n_positive,) and (n_benign,)."""
    area = auroc(positive, benign)
    low, high = auroc_interval(area, positive, benign)
    rates, recalls = roc_curve(positive, benign)
    return Separation(
        detector=detector,
        kind=kind,
        auroc=area,
        auroc_low=low,
        auroc_high=high,
        recall=tuple(recall_at(positive, benign, r) for r in FALSE_POSITIVE_RATES),
        flagged=Share.counted(positive > 0),
        roc_false_positive_rate=tuple(rates.tolist()),
        roc_recall=tuple(recalls.tolist()),
    )


def recall_at(positive: Float64, benign: Float64, rate: float) -> Recall:
    """
    The share of *positive* above the lowest threshold that *rate* allows.

    >>> recall_at(np.array([1.5, 3.0]), np.arange(100) / 50, 0.01).found.share
    0.5
    """
    needed = math.ceil(1 / rate)
    found = None
    if len(benign) >= needed:
        n_above = math.floor(len(benign) * rate + 1e-9)
        threshold = np.sort(benign)[-1 - n_above]
        found = Share.counted(positive > threshold)
    return Recall(false_positive_rate=rate, n_benign_needed=needed, found=found)


def roc_curve(positive: Float64, benign: Float64) -> tuple[Float64, Float64]:
    """
    False-positive rates and recalls at each threshold, from none to all.

    At most `_MAX_POINTS`, evenly spread over the logarithm of the rate.
    """
    thresholds = np.unique(np.concatenate([positive, benign]))[::-1]
    above_benign = np.searchsorted(np.sort(benign), thresholds, side="left")
    above_positive = np.searchsorted(np.sort(positive), thresholds, side="left")
    rates = np.concatenate([[0.0], 1 - above_benign / len(benign)])
    recalls = np.concatenate([[0.0], 1 - above_positive / len(positive)])
    # Of equal rates the best recall: a corner of the curve.
    last = np.flatnonzero(np.diff(rates, append=2.0) > 0)
    rates, recalls = rates[last], recalls[last]
    if len(rates) > _MAX_POINTS:
        wanted = np.geomspace(1 / len(benign), 1, _MAX_POINTS - 1)
        kept = np.unique(np.r_[0, np.searchsorted(rates, wanted - 1e-12)])
        kept = kept[kept < len(rates)]
        rates, recalls = rates[kept], recalls[kept]
    return rates, recalls


def auroc_interval(
    area: float, positive: Float64, benign: Float64
) -> tuple[float, float]:
    """
    The 95 % interval of the area under the ROC curve.

    DeLong's; where all or none are in order, which leaves it no variance, that of as
    many pairs as the smaller side can make (Clopper and Pearson 1934).
    """
    n_pairs = min(len(positive), len(benign))
    if area in (0.0, 1.0) or n_pairs == 1:
        return clopper_pearson(round(area * n_pairs), n_pairs)
    half = _95_PERCENT * math.sqrt(delong_variance(positive, benign))
    return max(area - half, 0.0), min(area + half, 1.0)


def delong_variance(positive: Float64, benign: Float64) -> float:
    """
    Variance of the area under the ROC curve (DeLong, DeLong and Clarke-Pearson 1988).

    By mid-ranks (Sun and Xu 2014); 0 where a side has only one.
    """
    m, n = len(positive), len(benign)
    ranks = rankdata(np.concatenate([positive, benign]))
    placed_positive = (ranks[:m] - rankdata(positive)) / n
    placed_benign = 1 - (ranks[m:] - rankdata(benign)) / m
    variance = 0.0
    for placed in (placed_positive, placed_benign):
        if len(placed) > 1:
            variance += float(placed.var(ddof=1)) / len(placed)
    return variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """
    Margins of one detector.

    Attributes:
        detector: Its name, or `ALL_DETECTORS`.

        edges: Of the bars, (n + 1,), evenly spaced in the inverse hyperbolic sine of
            the margin; what is beyond them is in the first or last.

        counts: By kind, (n,).
    """

    detector: str
    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


def histograms(scored: Scored, names: list[str], n_bars: int = 48) -> list[Histogram]:
    """Of each column of `Scored.margins`; the boundary, 0, is always among them."""
    found = []
    kinds = [scored.benign, *scored.other_kinds]
    for column, name in enumerate(names):
        margins = scored.margins[:, column]
        finite = margins[np.isfinite(margins)]
        if not len(finite):
            continue
        low, high = np.quantile(finite, [0.002, 0.998])
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        # Some are a hundred times further from the boundary than benign ones are.
        edges = np.sinh(np.linspace(np.arcsinh(low), np.arcsinh(high), n_bars + 1))
        counts = {}
        for kind in kinds:
            values = np.clip(margins[scored.of_kind(kind)], edges[0], edges[-1])
            counts[kind] = tuple(np.histogram(values, edges)[0].tolist())
        found.append(
            Histogram(detector=name, edges=tuple(edges.tolist()), counts=counts)
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """
    Rank correlation of detectors' margins (Spearman 1904).

    Attributes:
        kinds: "benign" or "all": over which requests.

        detectors: Names, in order.

        matrix: Of shape (n_detectors, n_detectors); None where one is constant.
    """

    kinds: str
    detectors: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]


def correlations(scored: Scored, names: list[str]) -> list[Correlation]:
    """Of detectors, over benign requests and over all, where there are two."""
    found = []
    for kinds, chosen in (
        ("benign", scored.of_kind(scored.benign)),
        ("all", scored.is_answered),
    ):
        margins = scored.margins[chosen][:, 1:]
        if len(margins) < 2:
            continue
        ranks = rankdata(margins, axis=0)
        centred = ranks - ranks.mean(axis=0)
        lengths = np.sqrt((centred**2).sum(axis=0))
        products = centred.T @ centred
        scales = np.outer(lengths, lengths)
        found.append(
            Correlation(
                kinds=kinds,
                detectors=tuple(names[1:]),
                matrix=tuple(
                    tuple(
                        float(np.clip(p / s, -1, 1)) if s > 0 else None
                        for p, s in zip(row, scale, strict=True)
                    )
                    for row, scale in zip(products, scales, strict=True)
                ),
            )
        )
    return found
