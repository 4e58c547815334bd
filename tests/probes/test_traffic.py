"""Drift and discoveries over a stream of requests."""

import math

import numpy as np
import pytest

from probes.arrays import Float64
from probes.calibration import Calibration, DriftTest, ELond, e_value, fixed_thresholds
from probes.calibration.tails import rate_bound


def calibration(reference: Float64) -> Calibration:
    """Two detectors and one bin, with *reference* (n_benign, 2) as peaks."""
    by_hand = fixed_thresholds({"a": 1.0, "b": 1.0})
    n = len(reference)
    values = {name: getattr(by_hand, name) for name in by_hand.__slots__}
    return Calibration(
        **values
        | {
            "reference": np.sort(reference, axis=0),
            "joint_reference": np.sort(reference.max(axis=1)),
            "reference_offsets": np.array([0, n]),
        }
    )


def highest(test: DriftTest, peaks: Float64) -> Float64:
    """The most that each detector's capital comes to."""
    most = np.zeros(2)
    for row in peaks:
        test.observe(row, 0)
        most = np.maximum(most, test.capital)
    return most


def test_benign_traffic_is_no_drift() -> None:
    """
    Over a hundred references and streams, capital above 20 is as rare as it must be.
    """
    n_alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        test = DriftTest(calibration(rng.normal(size=(300, 2))))
        n_alarms += int((highest(test, rng.normal(size=(1500, 2))) > 20).sum())

    # Of 200 tests at most one in twenty, and three standard deviations.
    assert n_alarms <= 200 / 20 + 3 * math.sqrt(200 / 20)


@pytest.mark.parametrize("shift", [1.0, -1.0])
@pytest.mark.parametrize("n_before", [0, 2000])
def test_a_shift_is_found(shift: float, n_before: int) -> None:
    """
    A detector whose scores move by a standard deviation is found, early or late.
    """
    rng = np.random.default_rng(7)
    test = DriftTest(calibration(rng.normal(size=(500, 2))))
    stream = rng.normal(size=(n_before + 600, 2))
    stream[n_before:, 0] += shift

    first, second = highest(test, stream)

    assert first > 1e6
    assert second < 20


def test_ties_are_no_drift() -> None:
    """
    A detector that is silent on all requests, as on benign ones, has not drifted.
    """
    test = DriftTest(calibration(np.zeros((300, 2))))

    assert (highest(test, np.zeros((2000, 2))) <= 1).all()


def test_capital_stays_a_number() -> None:
    """
    A drift without end does not overflow, nor one that ends lose its trace.
    """
    rng = np.random.default_rng(3)
    test = DriftTest(calibration(rng.normal(size=(300, 2))))
    with np.errstate(all="raise"):
        highest(test, np.full((3000, 2), 50.0))

    assert np.isfinite(test.capital).all()
    assert (test.capital > 1e20).all()


def test_nothing_is_tested_without_a_reference() -> None:
    """
    Thresholds that were set by hand give no test, and its capital stays at 1.
    """
    test = DriftTest(fixed_thresholds({"a": 1.0, "b": 1.0}))

    assert [1.0, 1.0] == highest(test, np.ones((50, 2))).tolist()


@pytest.mark.parametrize(("n_above", "n"), [(1, 99), (5, 200), (60, 300), (300, 300)])
def test_bound_of_a_rate_is_its_upper_quantile(n_above: int, n: int) -> None:
    """
    The bound is the quantile of a beta distribution, as SciPy has it.
    """
    stats = pytest.importorskip("scipy.stats")

    expected = stats.beta.isf(1e-4, n_above, n + 1 - n_above)

    assert expected == pytest.approx(rate_bound(n_above, n, 1e-4), rel=1e-9)


def test_false_discoveries_are_bounded() -> None:
    """
    Of the discoveries in mixed streams, the share of benign requests is below the rate.
    """
    shares, n_found = [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        is_bad = rng.random(800) < 0.2
        p_values = np.where(is_bad, rng.beta(0.02, 4, 800), rng.random(800))
        test = ELond(rate=0.1)
        found = np.array([test.is_discovery(max(p, 1e-6)) for p in p_values])
        shares.append((found & ~is_bad).sum() / max(1, found.sum()))
        n_found += int((found & is_bad).sum())

    assert np.mean(shares) <= 0.1
    assert n_found > 60 * 10


def test_e_values_are_one_on_average_at_most() -> None:
    """
    The e-value of a uniform p-value is 1 in expectation, by integration.
    """
    # From p = e^-40; below it there is 1/40 of the integral.
    logs = np.linspace(-40, 0, 2_000_001)
    p = np.exp(logs[:-1])
    values = np.array([e_value(float(x)) for x in p[::100]])
    integral = float((values * p[::100]).sum() * (logs[1] - logs[0]) * 100)

    assert integral == pytest.approx(1 - 1 / 40, abs=2e-3)


@pytest.mark.parametrize("p_value", [0.0, -0.1, 1.1, math.nan])
def test_what_is_no_p_value_is_refused(p_value: float) -> None:
    """
    A p-value outside (0, 1] is an error, not an e-value.
    """
    with pytest.raises(ValueError, match="p_value"):
        e_value(p_value)


@pytest.mark.parametrize("rate", [0.0, 1.0, math.nan])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    """
    A false discovery rate of nothing or all is refused.
    """
    with pytest.raises(ValueError, match="rate"):
        ELond(rate)
