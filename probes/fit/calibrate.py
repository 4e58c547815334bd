# The benign requests are split in three, at random:
#
#     learn    what is usual for each length: bins, centres, scales. Anything may be
#              done with these; the promise does not rest on them.
#     rank     the levels: an order statistic of their peaks in each bin. These are
#              exchangeable with the next benign request, since nothing else about the
#              boundary was chosen on them.
#     check    the rate that is realised, on requests that chose nothing.
"""Boundaries over length from benign requests: split conformal, marginal or PAC."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64, Int64
from probes.calibration import Calibration, CalibrationEvidence
from probes.calibration.lengths import bins_of
from probes.fit.intervals import (
    clopper_pearson,
    exactly,
    n_allowed_above,
    n_benign_needed,
    smallest_alpha,
)
from probes.fit.plan_calibration import CalibrationPlan
from probes.fit.trajectories import Trajectories

# A bin is given a few more requests than it needs, so that chance leaves it enough.
_SPARE_DEVIATIONS = 2.0


def calibrate(
    benign: Trajectories,
    detectors: Sequence[str],
    plan: CalibrationPlan,
    dataset_sha256: str,
) -> Calibration:
    """
    Boundaries that flag benign requests of any length at a rate of alpha at most.

    The promise is made for each length bin on its own, over all detectors together.
    It holds for any distribution if the next benign request is exchangeable with
    these: the same traffic. Marginal: on average over calibration sets. PAC: with the
    plan's confidence over them, in all bins at once.

    Args:
        benign: Of requests of which at least one token was scored.

        detectors: Names, in order.

        plan: What to promise.

        dataset_sha256: Digest of the data set they came from.

    Raises:
        ValueError: There are too few requests for alpha; says how many are needed,
            and which alpha they are enough for.
    """
    rates = plan.rates_of(detectors)
    is_gate = np.isin(detectors, plan.gates)
    learn, rank, check = _split(len(benign.n_tokens), plan)
    if not len(learn):
        raise ValueError(
            f"learn_share: expected a share of {len(benign.n_tokens)} benign requests "
            f"that is one or more, got {plan.learn_share:g}"
        )
    _check_enough(len(benign.n_tokens), len(rank), plan, rates)
    known = benign.n_tokens[np.concatenate([learn, check])]
    longest = _choose_bins(benign, known, rank, plan, rates)
    learnt = benign.at(longest, learn)
    centre, scale = _usual(learnt, plan.alpha)
    if plan.budget == "learnt":
        scale = _balance(learnt, centre, scale, plan.alpha)
    ranked = benign.at(longest, rank)
    peaks, bins = ranked.peaks(centre, scale), ranked.bins
    order = np.argsort(bins, kind="stable")
    counts = np.bincount(bins, minlength=len(longest))
    offsets = np.concatenate([[0], counts.cumsum()])
    reference, joint = peaks[order], peaks[order][:, ~is_gate].max(axis=1)
    final_level = np.empty((len(longest), len(detectors)))
    confidence = plan.confidence_each(len(longest), len(detectors))
    for k, (start, stop) in enumerate(pairwise(offsets)):
        reference[start:stop].sort(axis=0)
        joint[start:stop].sort()
        is_joint = ~is_gate & (plan.budget == "learnt")
        columns = np.where(is_joint, joint[start:stop, None], reference[start:stop])
        final_level[k] = _levels(columns, rates, confidence)
    _check_levels(final_level, detectors, longest)
    checked = benign.at(longest, check)
    crossed = checked.peaks(centre, scale) > final_level[checked.bins]
    is_turned_away = crossed[:, is_gate].any(axis=1)
    is_flagged = crossed[:, ~is_gate].any(axis=1) & ~is_turned_away
    n_flagged, n_checked = int(is_flagged.sum()), len(check)
    low, high = clopper_pearson(n_flagged, n_checked)
    evidence = CalibrationEvidence(
        alpha=plan.alpha,
        guarantee=plan.guarantee,
        confidence=plan.confidence if plan.guarantee == "pac" else 0.0,
        budget=plan.budget,
        shares=tuple(
            0.0 if gate else float(rate / exactly(plan.alpha))
            for gate, rate in zip(is_gate, rates, strict=True)
        ),
        gate_share=plan.gate_share if plan.gates else 0.0,
        dataset_sha256=dataset_sha256,
        seed=plan.seed,
        n_learnt=len(learn),
        n_benign=tuple(counts.tolist()),
        n_checked=_count(checked.bins, len(longest)),
        n_flagged=_count(checked.bins[is_flagged], len(longest)),
        realised_low=low,
        realised_high=high,
    )
    return Calibration(
        detectors=tuple(detectors),
        gates=plan.gates,
        longest=longest,
        centre=centre,
        scale=scale,
        running_level=np.maximum.accumulate(final_level[::-1])[::-1].copy(),
        final_level=final_level,
        reference=reference,
        joint_reference=joint,
        reference_offsets=offsets,
        evidence=evidence,
    )


def _split(n: int, plan: CalibrationPlan) -> tuple[Int64, Int64, Int64]:
    """Which requests learn, rank and check, each rising."""
    order = np.random.default_rng(plan.seed).permutation(n)
    n_learn, n_check = (
        math.floor(n * plan.learn_share),
        math.floor(n * plan.check_share),
    )
    parts = np.split(order, [n_learn, n - n_check])
    learn, rank, check = (np.sort(part) for part in parts)
    return learn, rank, check


def _check_enough(
    n: int, n_rank: int, plan: CalibrationPlan, rates: Sequence[Fraction]
) -> None:
    """Raise `ValueError` unless *n_rank* requests are enough for one bin."""
    confidence = plan.confidence_each(1, len(rates))
    needed = n_benign_needed(min(rates), confidence)
    if n_rank >= needed and n > n_rank:
        return
    share = 1 - plan.learn_share - plan.check_share
    # What the least of the rates would have to be, in units of alpha.
    least = float(exactly(plan.alpha) / min(rates))
    supported = smallest_alpha(max(n_rank, 1), confidence) * least
    raise ValueError(
        f"alpha {plan.alpha:g} with budget {plan.budget!r} over {len(rates)} detectors "
        f"needs at least {math.ceil(needed / share)} benign requests, of which "
        f"{needed} choose the levels; got {n} and {n_rank}, enough for an alpha of "
        f"{min(supported, 1):.4g}"
    )


def _choose_bins(
    benign: Trajectories,
    known: Int64,
    rank: Int64,
    plan: CalibrationPlan,
    rates: Sequence[Fraction],
) -> Int64:
    """
    As many length bins as the requests are enough for.

    By lengths of requests that choose no level, and then fewer of them where chance
    has left one of those bins too few.
    """
    last = bins_of(benign.grid, benign.n_tokens).max()
    grid = benign.grid[: last + 1]
    for n_bins in range(len(grid), 1, -1):
        confidence = plan.confidence_each(n_bins, len(rates))
        needed = n_benign_needed(min(rates), confidence)
        spare = _SPARE_DEVIATIONS * math.sqrt(needed)
        expected = _counts(known, grid) * (len(rank) / len(known))
        longest = _merge(grid, expected, needed + spare)
        found = _counts(benign.n_tokens[rank], longest)
        if len(longest) <= n_bins and found.min() >= needed:
            return longest
    return grid[-1:]


def _counts(n_tokens: Int64, longest: Int64) -> Int64:
    return np.bincount(bins_of(longest, n_tokens), minlength=len(longest))


def _count(bins: Int64, n_bins: int) -> tuple[int, ...]:
    return tuple(np.bincount(bins, minlength=n_bins).tolist())


def _merge(grid: Int64, expected: NDArray[np.floating[Any]], needed: float) -> Int64:
    """The lengths of *grid* that end a bin with *needed* requests or more."""
    ends: list[int] = []
    total = 0.0
    for length, n in zip(grid.tolist(), expected.tolist(), strict=True):
        total += n
        if total >= needed:
            ends.append(length)
            total = 0.0
    # What is left over at the long end belongs to the last bin.
    return np.array([*ends[:-1], int(grid[-1])], dtype=np.int64)


def _usual(learnt: Trajectories, alpha: float) -> tuple[Float64, Float64]:
    """
    What is usual in each bin, and how far above it is still usual.

    The median, and from there to a high quantile: both of the requests that come as
    far as the bin, or, of a statistic that may fall, that end in it.
    """
    n_bins, n_detectors = len(learnt.grid), len(learnt.is_monotone)
    centre, scale = np.zeros((n_bins, n_detectors)), np.ones((n_bins, n_detectors))
    for d, is_monotone in enumerate(learnt.is_monotone):
        for k in range(n_bins):
            is_here = learnt.bins >= k if is_monotone else learnt.bins == k
            values = learnt.statistics[is_here, k, d]
            values = values[np.isfinite(values)]
            if len(values) >= 2:
                centre[k, d], scale[k, d] = _centre_and_scale(values, alpha)
            elif k:
                centre[k, d], scale[k, d] = centre[k - 1, d], scale[k - 1, d]
    return centre, scale


def _centre_and_scale(values: Float64, alpha: float) -> tuple[float, float]:
    # As far up as ten requests can tell.
    high = max(0.75, 1 - max(alpha, 10 / len(values)))
    centre, top = np.quantile(values, [0.5, high])
    for scale in (top - centre, values.max() - centre):
        if scale > 0:
            return float(centre), float(scale)
    # A statistic that never moved on benign requests keeps its own unit.
    return float(centre), 1.0


def _balance(
    learnt: Trajectories, centre: Float64, scale: Float64, alpha: float
) -> Float64:
    """Scales with which each detector alone would flag about equally often."""
    peaks = learnt.peaks(centre, scale)
    high = 1 - max(alpha, 1 / len(peaks))
    tops = np.quantile(peaks, high, axis=0, method="lower")
    balanced: Float64 = scale * np.where(np.isfinite(tops) & (tops > 0), tops, 1.0)
    return balanced


def _levels(
    reference: Float64, rates: Sequence[Fraction], confidence: float
) -> Float64:
    """Each detector's level in one bin, (n_detectors,), from its sorted peaks."""
    n = len(reference)
    rows = [n - 1 - n_allowed_above(n, rate, confidence) for rate in rates]
    level: Float64 = reference[rows, np.arange(len(rates))]
    return level


def _check_levels(
    final_level: Float64, detectors: Sequence[str], longest: Int64
) -> None:
    """Raise `ValueError` if a detector counted nothing on the benign requests."""
    for k, d in np.argwhere(~np.isfinite(final_level)):
        raise ValueError(
            f"{detectors[d]!r}: expected benign requests of at most {longest[k]} "
            f"tokens of which it counts some, got none"
        )
