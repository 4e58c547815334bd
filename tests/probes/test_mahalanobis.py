"""Mahalanobis distance against a float64 reference."""

import numpy as np
import pytest

from probes import Mahalanobis, Mean, score
from probes.arrays import Float32, Float64
from tests.probes.builders import HOOK_POINT, floats, mahalanobis


def reference(detector: Mahalanobis, activations: Float32) -> Float64:
    """The formula as it is written, in float64."""
    centred = activations.astype(np.float64) - detector.mean.astype(np.float64)
    along = centred @ detector.directions.astype(np.float64).T
    distance = (along**2 / detector.variances.astype(np.float64)).sum(axis=1)
    if detector.is_full_rank:
        return np.asarray(distance, dtype=np.float64)
    energy = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
    return np.asarray(distance + energy / detector.residual_variance, dtype=np.float64)


@pytest.mark.parametrize("d_model", [128, 512, 2048])
@pytest.mark.parametrize("rank", [1, 16, 64])
@pytest.mark.parametrize("squared_norm_over_variance", [0.0, 100.0, 1e4])
def test_distance_stays_close_to_float64(
    d_model: int, rank: int, squared_norm_over_variance: float
) -> None:
    """
    A mean of up to 1e4 times the variance costs less than 1e-4 of the distance.
    """
    mean_scale = np.sqrt(squared_norm_over_variance / d_model)
    detector = mahalanobis(rank, d_model, float(mean_scale))
    activations = detector.mean + floats(200, d_model, seed=8)

    evidence = score(detector, {HOOK_POINT: activations})[:, 0]

    np.testing.assert_allclose(evidence, reference(detector, activations), rtol=1e-4)


def test_distance_is_never_negative() -> None:
    """
    At the mean itself, where everything cancels, the distance is about zero.
    """
    detector = mahalanobis(4, 64, mean_scale=10.0)

    evidence = score(detector, {HOOK_POINT: detector.mean[None]})

    assert 0 <= evidence[0, 0] < 1e-2


def test_only_low_rank_asks_for_the_norm() -> None:
    """
    At full rank there is no residual, and no column for it.
    """
    low, full = mahalanobis(rank=4), mahalanobis(rank=12)

    assert (True, 9) == (low.projections[0].wants_norm, low.projections[0].n_columns)
    assert (False, 12) == (
        full.projections[0].wants_norm,
        full.projections[0].n_columns,
    )


def test_mean_of_zero_works() -> None:
    """
    Centred activations, whose mean has no direction, are scored.
    """
    detector = mahalanobis(rank=4, mean_scale=0.0)
    activations = floats(20, 12, seed=9)

    evidence = score(detector, {HOOK_POINT: activations})[:, 0]

    np.testing.assert_allclose(evidence, reference(detector, activations), rtol=1e-5)


@pytest.mark.parametrize(
    ("variances", "residual_variance", "named"),
    [([1.0, 0.0], 1.0, "variances"), ([1.0, 1.0], 0.0, "residual_variance")],
)
def test_impossible_variances_are_refused(
    variances: list[float], residual_variance: float, named: str
) -> None:
    """
    A variance of zero would divide by zero, and is refused when built.
    """
    with pytest.raises(ValueError, match=named):
        Mahalanobis(
            name="m",
            hook_point=HOOK_POINT,
            mean=floats(4),
            directions=np.eye(4, dtype=np.float32)[:2],
            variances=np.array(variances, dtype=np.float32),
            residual_variance=residual_variance,
            aggregator=Mean(),
        )
