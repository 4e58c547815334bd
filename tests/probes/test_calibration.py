"""Thresholds and their guarantee."""

import numpy as np
import pytest

from probes import Calibration, calibrate, n_benign_needed


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.01), (100, 0.05), (500, 0.1)])
def test_realised_rate_is_at_most_alpha(n: int, alpha: float) -> None:
    """
    Over many calibration sets, the next benign request is flagged at most at alpha.
    """
    rng = np.random.default_rng(n)
    n_trials = 4000
    drawn = rng.standard_t(df=3, size=(n_trials, n + 1))

    n_flagged = sum(
        bool(calibrate(row[:-1], alpha, "d").margin(row[-1:])[0] > 0) for row in drawn
    )

    # Three standard deviations of a binomial above the promise.
    tolerance = 3 * np.sqrt(n_trials * alpha * (1 - alpha))
    assert n_flagged <= n_trials * alpha + tolerance


def test_threshold_is_the_order_statistic() -> None:
    """
    For 99 requests at one per cent the threshold is the largest, exactly.
    """
    calibration = calibrate(np.arange(99, dtype=np.float64), 0.01, "d")

    assert 98.0 == calibration.threshold
    assert 0 == calibration.n_flagged_benign


def test_ties_are_not_flagged() -> None:
    """
    A request as high as the threshold is not above it.
    """
    calibration = calibrate(np.ones(200), 0.05, "d")

    assert 0 == calibration.n_flagged_benign
    assert [0.0] == calibration.margin(np.ones(1)).tolist()


def test_realised_count_is_kept() -> None:
    """
    The record says how many of its own benign requests are flagged.
    """
    assert 9 == calibrate(np.arange(199, dtype=np.float64), 0.05, "d").n_flagged_benign


@pytest.mark.parametrize(("alpha", "needed"), [(0.01, 99), (0.005, 199), (0.3, 3)])
def test_too_few_requests_are_refused(alpha: float, needed: int) -> None:
    """
    Fewer requests than the promise needs are refused, naming how many it needs.
    """
    with pytest.raises(ValueError, match=f"at least {needed} "):
        calibrate(np.arange(needed - 1, dtype=np.float64), alpha, "d")

    assert needed == n_benign_needed(alpha)
    assert needed == calibrate(np.arange(needed, dtype=np.float64), alpha, "d").n_benign


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_statistics_are_refused(bad: float) -> None:
    """
    A statistic that is not a number cannot be part of a promise.
    """
    with pytest.raises(ValueError, match="finite"):
        calibrate(np.array([bad] * 200), 0.05, "d")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, 2.0])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    """
    A promise of never or always is refused.
    """
    with pytest.raises(ValueError, match="alpha"):
        calibrate(np.arange(200, dtype=np.float64), alpha, "d")


def test_impossible_record_is_refused() -> None:
    """
    A record that flags more requests than it saw cannot be built.
    """
    with pytest.raises(ValueError, match="n_flagged_benign"):
        Calibration(
            threshold=0.0, alpha=0.1, n_benign=3, n_flagged_benign=4, dataset_sha256=""
        )
