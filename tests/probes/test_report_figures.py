# ruff: noqa: E402 - SciPy comes with what the fits need.
"""The statistics of a report, against plain definitions and other libraries."""

import numpy as np
import pytest

from tests.probes.builders import require_sklearn

require_sklearn()

from probes.arrays import Float64
from probes.fit.evaluate import auroc
from probes.fit.report.layers import cross_validated_auroc
from probes.fit.report.separation import (
    delong_variance,
    recall_at,
    roc_curve,
    separation,
)
from probes.fit.report.shift import psi

CASES = [(40, 60, False), (7, 300, True), (500, 900, True), (3, 2, False)]


def draw(n_positive: int, n_benign: int, has_ties: bool) -> tuple[Float64, Float64]:
    """Scores of both kinds."""
    rng = np.random.default_rng(n_positive)
    positive, benign = rng.normal(1, 1, n_positive), rng.normal(0, 1, n_benign)
    if has_ties:
        positive, benign = positive.round(1), benign.round(1)
    return positive, benign


@pytest.mark.parametrize(("n_positive", "n_benign", "has_ties"), CASES)
def test_variance_is_that_of_the_placements(
    n_positive: int, n_benign: int, has_ties: bool
) -> None:
    """
    DeLong's variance by ranks is that of comparing every pair.
    """
    positive, benign = draw(n_positive, n_benign, has_ties)
    wins = (positive[:, None] > benign) + 0.5 * (positive[:, None] == benign)
    expected = (
        wins.mean(axis=1).var(ddof=1) / n_positive
        + wins.mean(axis=0).var(ddof=1) / n_benign
    )

    assert expected == pytest.approx(delong_variance(positive, benign))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """
    Of 400 draws, about 95 % of DeLong's intervals hold the true AUROC.
    """
    from scipy.stats import norm

    truth = norm.cdf(1 / np.sqrt(2))
    rng = np.random.default_rng(0)
    n_held = 0
    for _ in range(400):
        found = separation("a", "b", rng.normal(1, 1, 80), rng.normal(0, 1, 120))
        n_held += found.auroc_low <= truth <= found.auroc_high

    assert 0.92 < n_held / 400 < 0.98


@pytest.mark.parametrize(("n_positive", "n_benign", "has_ties"), CASES)
def test_the_curve_is_scikit_learns(
    n_positive: int, n_benign: int, has_ties: bool
) -> None:
    """
    At each false-positive rate the best recall is scikit-learn's, and so is the area.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.metrics import roc_curve as oracle

    positive, benign = draw(n_positive, n_benign, has_ties)
    labels = np.r_[np.ones(n_positive), np.zeros(n_benign)]
    scores = np.r_[positive, benign]
    fpr, tpr, _ = oracle(labels, scores, drop_intermediate=False)

    rates, recalls = roc_curve(positive, benign)

    assert recalls[0] == pytest.approx(tpr[fpr == 0].max())
    for rate, recall in zip(rates, recalls, strict=True):
        assert recall == pytest.approx(tpr[np.isclose(fpr, rate)].max())
    assert (1.0, 1.0) == (rates[-1], recalls[-1])
    assert roc_auc_score(labels, scores) == pytest.approx(auroc(positive, benign))


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01])
def test_recall_is_at_a_threshold_that_the_rate_allows(rate: float) -> None:
    """
    No more benign scores than the rate are above it, and none lower would do.
    """
    positive, benign = draw(500, 900, has_ties=True)
    best = max(
        (positive > threshold).mean()
        for threshold in benign
        if (benign > threshold).mean() <= rate
    )

    found = recall_at(positive, benign, rate).found

    assert found is not None
    assert best == found.share


def test_perfect_order_is_not_certain() -> None:
    """
    Three requests in order leave an interval that is as wide as three are.
    """
    positive, benign = np.array([4.0, 5.0, 6.0, 7.0, 8.0]), np.array([0.0, 1.0, 2.0])
    found = separation("a", "b", positive, benign)

    assert (1.0, 1.0) == (found.auroc, found.auroc_high)
    assert 0.2 < found.auroc_low < 0.4


def test_few_benign_requests_cannot_tell_a_low_rate() -> None:
    """
    99 of them say nothing of a rate of one in a hundred.
    """
    positive, benign = draw(20, 99, has_ties=False)

    recall = recall_at(positive, benign, 0.01)

    assert (recall.found, recall.n_benign_needed) == (None, 100)


def test_stability_index_is_its_formula() -> None:
    """
    Over the deciles of a large reference it comes near the integral that it estimates.
    """
    rng = np.random.default_rng(0)
    reference, here = rng.normal(size=200_000), rng.normal(0.5, 1, 200_000)
    from scipy.stats import norm

    edges = norm.ppf(np.linspace(0, 1, 11))
    p, q = np.diff(norm.cdf(edges)), np.diff(norm.cdf(edges, loc=0.5))
    expected = ((q - p) * np.log(q / p)).sum()

    assert expected == pytest.approx(psi(reference, here), rel=0.03)
    assert psi(reference, rng.normal(size=200_000)) < 0.001


def test_stability_index_takes_scores_that_hardly_vary() -> None:
    """
    A detector that is silent on nearly all has few parts, and a finite index.
    """
    silent, loud = np.zeros(100), np.ones(100)

    assert 0 == psi(silent, silent)
    assert np.isfinite(psi(silent, loud))
    assert psi(silent, loud) > 1
    assert psi(loud, silent) > 1
    assert np.isfinite(psi(np.full(50, -np.inf), np.zeros(3)))


def test_cross_validation_does_not_see_what_it_measures() -> None:
    """
    Noise in many dimensions, which a fit could learn by heart, stays at chance.
    """
    rng = np.random.default_rng(1)
    positive, benign = rng.normal(size=(2, 60, 500)).astype(np.float32)

    assert 0.35 < cross_validated_auroc(positive, benign) < 0.65
    assert cross_validated_auroc(positive + 0.5, benign) > 0.95
