# ruff: noqa: E402 - calibration is imported once scikit-learn and SciPy are there.
"""Boundaries over length, and their guarantee."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.probes.builders import require_sklearn

require_sklearn()

from probes.aggregate import Aggregator, Last, Max, Mean
from probes.arrays import Float32, Int64
from probes.calibration import Calibration, Peaks, fixed_thresholds
from probes.evidence import Evidence
from probes.fit.calibrate import calibrate
from probes.fit.intervals import (
    clopper_pearson,
    n_allowed_above,
    n_benign_needed,
    smallest_alpha,
)
from probes.fit.judge import judge
from probes.fit.plan_calibration import CalibrationPlan
from probes.fit.trajectories import Trajectories, follow, length_grid
from probes.linear import LinearProbe

AGGREGATORS: tuple[Aggregator, ...] = (Max(), Mean(), Last())
NAMES = [a.name for a in AGGREGATORS]


def probes() -> list[LinearProbe]:
    """A probe each of `AGGREGATORS`."""
    return [
        LinearProbe(
            name=aggregator.name,
            hook_point="blocks.0.hook_resid_post",
            weight=np.ones(1, dtype=np.float32),
            bias=0.0,
            aggregator=aggregator,
        )
        for aggregator in AGGREGATORS
    ]


def draw(
    rng: np.random.Generator, n: int, longest: int = 200
) -> tuple[Int64, list[Float32]]:
    """Lengths and evidence of *n* requests, each with an offset of its own."""
    n_tokens = rng.integers(1, longest + 1, n)
    offsets = np.repeat(rng.normal(size=n), n_tokens)
    evidence = [
        (offsets + rng.normal(size=n_tokens.sum())).astype(np.float32)[:, None]
        for _ in AGGREGATORS
    ]
    return n_tokens, evidence


def walk(n_tokens: Int64, evidence: list[Float32]) -> Trajectories:
    """Where these requests stand on their way."""
    grid = length_grid(int(n_tokens.max()))
    everywhere = np.ones(len(evidence[0]), dtype=np.bool_)
    return Trajectories(
        grid=grid,
        n_tokens=n_tokens,
        statistics=follow(
            probes(), Evidence.of(probes(), evidence), n_tokens, everywhere, grid
        ),
        is_monotone=np.array([a.is_monotone for a in AGGREGATORS]),
    )


def benign(n: int, seed: int = 0, longest: int = 200) -> Trajectories:
    """Benign requests on their way."""
    return walk(*draw(np.random.default_rng(seed), n, longest))


PLANS = {
    "learnt": CalibrationPlan(alpha=0.1),
    "even": CalibrationPlan(alpha=0.1, budget="even"),
    "weighted": CalibrationPlan(alpha=0.1, budget="weighted", shares=(0.5, 0.3, 0.2)),
    "pac": CalibrationPlan(alpha=0.1, guarantee="pac", confidence=0.9),
    "gated": CalibrationPlan(alpha=0.1, gates=("mean",), gate_share=0.05),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_realised_rate_is_at_most_alpha(plan: CalibrationPlan) -> None:
    """
    Over many calibration sets, benign requests of any length are flagged at alpha.
    """
    n_flagged, n_tested = np.zeros(3), np.zeros(3)
    for seed in range(40):
        calibration = calibrate(benign(600, seed), NAMES, plan, "d")
        tested = benign(500, 1000 + seed)
        is_flagged = judge(tested, calibration).is_flagged.any(axis=1)
        thirds = np.digitize(tested.n_tokens, [32, 100])
        n_flagged += np.bincount(thirds[is_flagged], minlength=3)
        n_tested += np.bincount(thirds, minlength=3)

    # Three standard deviations: of 40 sets, each of a rate that varies by 0.03.
    assert (n_flagged / n_tested <= 0.1 + 3 * 0.03 / np.sqrt(40)).all()
    assert n_flagged.sum() / n_tested.sum() > 0.01


def test_pac_holds_for_nearly_every_calibration_set() -> None:
    """
    With confidence 0.9, at most about one calibration set in ten promises too much.
    """
    plan = PLANS["pac"]
    tested = benign(4000, 999)
    rates = [
        judge(tested, calibrate(benign(600, seed), NAMES, plan, "d")).is_flagged
        for seed in range(60)
    ]
    n_broken = sum(float(rate.any(axis=1).mean()) > 0.1 for rate in rates)

    # A binomial of 60 and 0.1 is above 13 once in a thousand.
    assert n_broken <= 13


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_flag_does_not_depend_on_the_cutting(plan: CalibrationPlan) -> None:
    """
    Token by token, at random or at once: the same requests are flagged, as offline.
    """
    rng = np.random.default_rng(5)
    calibration = calibrate(benign(800), NAMES, plan, "d")
    n_tokens, evidence = draw(rng, 60)
    evidence = [one + np.float32(1.5) * (rng.random() < 0.5) for one in evidence]
    expected = judge(walk(n_tokens, evidence), calibration)

    for n_cuts in (0, 3, 200):
        cuts = np.sort(rng.integers(0, n_tokens[:, None] + 1, (60, n_cuts)), axis=1)
        ends = np.column_stack([cuts, n_tokens])
        assert_same(run(calibration, n_tokens, evidence, ends), expected.is_flagged)


def run(
    calibration: Calibration, n_tokens: Int64, evidence: list[Float32], ends: Int64
) -> NDArray[np.bool_]:
    """Which detectors flag, with steps that end at *ends* (n_requests, n_steps)."""
    peaks = Peaks(probes(), calibration, n_slots=2)
    slots = np.array([peaks.take() for _ in n_tokens])
    first_rows, before = n_tokens.cumsum() - n_tokens, np.zeros_like(n_tokens)
    on_the_way = np.zeros((len(n_tokens), len(NAMES)), dtype=np.bool_)
    for end in ends.T:
        rows = np.concatenate(
            [
                np.arange(f + b, f + e)
                for f, b, e in zip(first_rows, before, end, strict=True)
            ]
        )
        offsets = np.concatenate([[0], (end - before).cumsum()])
        step = Evidence.of(probes(), [one[rows] for one in evidence])
        peaks.update(slots, step, offsets, np.ones(len(rows), dtype=np.bool_))
        on_the_way |= peaks.crossed_running(slots)
        before = end
    at_end = np.array([peaks.crossed_at_end(slot) for slot in slots])
    # What is flagged on the way is flagged at the end, or was before a gate closed.
    assert (on_the_way <= at_end).all() or calibration.gates
    unlike = np.array([peaks.is_unlike(slot) for slot in slots])
    flags: NDArray[np.bool_] = on_the_way | (at_end & ~unlike[:, None])
    return flags


def assert_same(found: NDArray[np.bool_], expected: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(found, expected)


def test_too_few_requests_name_how_many() -> None:
    """
    A smaller alpha than n requests can support is refused, with the n it would need.
    """
    with pytest.raises(ValueError, match=r"needs at least 1998 benign.* 400 and 200"):
        calibrate(benign(400), NAMES, CalibrationPlan(alpha=0.001), "d")

    enough = calibrate(benign(1998), NAMES, CalibrationPlan(alpha=0.001), "d")
    assert enough.evidence is not None
    assert (1000,) == enough.evidence.n_benign
    with pytest.raises(ValueError, match="1997 and 999"):
        calibrate(benign(1997), NAMES, CalibrationPlan(alpha=0.0009), "d")


def test_an_even_budget_needs_more_and_says_so() -> None:
    """
    Three detectors with a third of alpha each need three times as many requests.
    """
    plan = CalibrationPlan(alpha=0.01, budget="even")
    with pytest.raises(ValueError, match=r"at least 598 .* alpha of 0\.01493"):
        calibrate(benign(400, longest=8), NAMES, plan, "d")


def test_bins_have_as_many_requests_as_the_promise_needs() -> None:
    """
    No length bin is given fewer benign requests than alpha needs.
    """
    calibration = calibrate(benign(900, longest=4000), NAMES, PLANS["learnt"], "d")

    evidence = calibration.evidence
    assert evidence is not None
    assert calibration.n_bins > 2
    assert min(evidence.n_benign) >= n_benign_needed(0.1)
    assert 4096 == calibration.longest[-1]
    assert 900 == evidence.n_learnt + sum(evidence.n_benign) + sum(evidence.n_checked)


def test_the_check_is_of_requests_that_chose_nothing() -> None:
    """
    The realised rate is that of the third part, with its exact interval.
    """
    evidence = calibrate(benign(2000), NAMES, PLANS["learnt"], "d").evidence

    assert evidence is not None
    n_flagged, n_checked = sum(evidence.n_flagged), sum(evidence.n_checked)
    assert 500 == n_checked
    assert n_flagged / n_checked == evidence.realised
    interval = (evidence.realised_low, evidence.realised_high)
    assert clopper_pearson(n_flagged, n_checked) == interval
    assert interval[0] <= 0.1


def test_same_requests_same_calibration() -> None:
    """
    The seed decides the split: the same one gives the same boundary, another does not.
    """
    first, again = (calibrate(benign(500), NAMES, PLANS["even"], "d") for _ in "ab")
    other = calibrate(benign(500), NAMES, replace(PLANS["even"], seed=1), "d")

    np.testing.assert_array_equal(first.final_level, again.final_level)
    assert (first.final_level != other.final_level).any()


def test_longer_than_all_that_was_seen_is_not_judged() -> None:
    """
    Beyond the longest calibrated length there is no flag, and it is known.
    """
    calibration = calibrate(benign(400, longest=60), NAMES, PLANS["learnt"], "d")
    peaks = Peaks(probes(), calibration)
    slot = peaks.take()

    evidence = [np.zeros((100, 1), dtype=np.float32) for _ in NAMES]
    for one in evidence:
        one[64:] = 1e9
    everywhere = np.ones(100, dtype=np.bool_)
    step = Evidence.of(probes(), evidence)
    peaks.update(np.array([slot]), step, np.array([0, 100]), everywhere)

    assert peaks.is_beyond(slot)
    assert not peaks.crossed_at_end(slot).any()
    assert not peaks.crossed_running(np.array([slot])).any()


def test_thresholds_by_hand_promise_nothing() -> None:
    """
    Above a threshold is flagged, at it is not; there is no p-value.
    """
    calibration = fixed_thresholds({"max": 1.0, "mean": 1.0, "last": 1.0})
    evidence = [np.array([[1.0], [3.0]], dtype=np.float32) for _ in NAMES]
    judged = judge(walk(np.array([1, 1]), evidence), calibration)

    assert [[False] * 3, [True] * 3] == judged.is_flagged.tolist()
    assert np.isnan(judged.p_values).all()
    assert "1" == calibration.thresholds_text("max")
    with pytest.raises(ValueError, match="one or more"):
        fixed_thresholds({})


def test_p_values_are_what_they_say() -> None:
    """
    A benign request's p-value is below u at most about u of the time.
    """
    p_values = np.concatenate(
        [
            judge(
                benign(400, 500 + seed),
                calibrate(benign(600, seed), NAMES, plan, "d"),
            ).p_values
            for seed in range(15)
            for plan in (PLANS["learnt"], PLANS["weighted"])
        ]
    )

    for u in (0.01, 0.05, 0.2, 0.5):
        assert (p_values <= u).mean() <= u + 3 * np.sqrt(u * (1 - u) / 400) / 2
    assert (p_values <= 0.2).mean() > 0.05


@pytest.mark.parametrize(("alpha", "needed"), [(0.01, 99), (0.005, 199), (0.3, 3)])
def test_needed_and_supported_are_inverse(alpha: float, needed: int) -> None:
    """
    n requests are enough for the alpha that they support, and one fewer is not.
    """
    assert needed == n_benign_needed(alpha)
    assert smallest_alpha(needed) <= alpha < smallest_alpha(needed - 1)
    for confidence in (0.5, 0.95):
        n = n_benign_needed(alpha, confidence)
        assert (
            smallest_alpha(n, confidence) <= alpha < smallest_alpha(n - 1, confidence)
        )
    assert 0 == n_allowed_above(needed, alpha)
    with pytest.raises(ValueError, match=f"at least {needed} benign"):
        n_allowed_above(needed - 1, alpha)


def test_intervals_are_exact() -> None:
    """
    Ends of an interval are the rates at which the count is as rare as it may be.
    """
    from scipy.stats import binom

    low, high = clopper_pearson(7, 50)

    assert 0.025 == pytest.approx(binom.sf(6, 50, low))
    assert 0.025 == pytest.approx(binom.cdf(7, 50, high))
    assert (0.0, 1.0) == clopper_pearson(0, 0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"budget": "all"}, "budget"),
        ({"guarantee": "sure"}, "guarantee"),
        ({"confidence": 1.0}, "confidence"),
        ({"shares": (1.0,)}, "shares"),
        ({"budget": "weighted"}, "shares"),
        ({"budget": "weighted", "shares": (0.5, 0.6)}, "shares"),
        ({"learn_share": 0.5, "check_share": 0.5}, "learn_share"),
        ({"learn_share": 0.0}, "learn_share"),
        ({"gate_share": 1.0}, "gate_share"),
    ],
)
def test_an_impossible_plan_is_refused(changes: dict[str, object], match: str) -> None:
    """
    What cannot be promised is refused by its name.
    """
    with pytest.raises(ValueError, match=match):
        CalibrationPlan(**({"alpha": 0.1} | changes))  # type: ignore[arg-type]


def test_a_detector_that_counts_nothing_is_refused() -> None:
    """
    A boundary cannot rest on benign requests of which a detector saw no token.
    """
    some = benign(400)
    some.statistics[:, :, 1] = -np.inf
    with pytest.raises(ValueError, match=r"'mean'.*got none"):
        calibrate(some, NAMES, PLANS["even"], "d")


def test_a_detector_that_never_moves_is_calibrated() -> None:
    """
    A feature that no benign token switches on flags the first request that does.
    """
    some = benign(600)
    some.statistics[:, :, 0] = 0.0
    calibration = calibrate(some, NAMES, PLANS["even"], "d")

    n_tokens, evidence = np.array([20]), [np.zeros((20, 1), np.float32) for _ in NAMES]
    evidence[0][10] = 0.5

    flagged = judge(walk(n_tokens, evidence), calibration).is_flagged
    assert [True, False, False] == flagged[0].tolist()
