"""Distances and products against plain float64, and the fits behind them."""

from pathlib import Path

import numpy as np
import pytest

from probes import Dataset, Max, load_bundle, load_dataset, save_bundle, score
from tests.bench.que import aurocs
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    bilinear,
    floats,
    nearest,
    relative,
    require_sklearn,
    write_dataset,
)

require_sklearn()

from probes.fit.benign import (  # noqa: E402 - after the check that it can be imported
    fit_diagonal,
    fit_nearest,
    fit_que,
    fit_relative,
    que_form,
)
from probes.fit.mahalanobis import fit_mahalanobis  # noqa: E402
from probes.fit.recipe import fit_bundle  # noqa: E402


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_dataset(tmp_path / "data")
    return load_dataset(tmp_path / "data")


@pytest.mark.parametrize("is_normalised", [True, False])
@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_nearest_is_the_kth_distance(
    is_normalised: bool, k: int, offset: float
) -> None:
    """
    Evidence is the k-th smallest distance, also where all are far from the origin.
    """
    detector = nearest(is_normalised=is_normalised, k=k, d_model=256)
    x = floats(40, 256, seed=70) + np.float32(2 + offset)

    evidence = score(detector, {HOOK_POINT: x})[:, 0]

    wide, coreset = x.astype(np.float64), detector.coreset.astype(np.float64)
    if is_normalised:
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    distances = np.linalg.norm(wide[:, None] - coreset, axis=2)
    np.testing.assert_allclose(evidence, np.sort(distances)[:, k - 1], rtol=1e-3)


def test_relative_is_the_difference() -> None:
    """
    Evidence is one distance less the other.
    """
    detector = relative()
    x = {HOOK_POINT: floats(30, D_MODEL, seed=71) * np.float32(4)}

    expected = score(detector.served, x) - score(detector.background, x)

    np.testing.assert_allclose(score(detector, x), expected, rtol=1e-4, atol=1e-3)


def test_bilinear_is_the_sum_of_products() -> None:
    """
    Evidence is the weighted sum of the products of two directions.
    """
    detector = bilinear()
    x = floats(30, D_MODEL, seed=72)

    left = x @ detector.left.T + detector.left_bias
    right = x @ detector.right.T + detector.right_bias
    expected = (left * right) @ detector.feature_weights + detector.bias
    evidence = score(detector, {HOOK_POINT: x})[:, 0]
    np.testing.assert_allclose(evidence, expected, rtol=1e-4, atol=1e-4)


def test_diagonal_divides_each_coordinate(dataset: Dataset) -> None:
    """
    The diagonal distance is the sum of each coordinate's squared z-score.
    """
    detector = fit_diagonal(
        dataset, name="d", hook_point=HOOK_POINT, benign=[0, 1, 2], aggregator=Max()
    )
    rows = dataset.activations[HOOK_POINT][
        dataset.rows_of(0).start : dataset.rows_of(2).stop
    ].astype(np.float64)

    evidence = score(detector, {HOOK_POINT: rows.astype(np.float32)})[:, 0]

    z = (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)
    np.testing.assert_allclose(evidence, (z**2).sum(axis=1), rtol=1e-4)


def test_que_is_its_form(dataset: Dataset) -> None:
    """
    The stored detector scores as the precomputed form does, which is positive.
    """
    benign, traffic = list(range(20)), list(range(60))
    detector = fit_que(
        dataset,
        name="q",
        hook_point=HOOK_POINT,
        benign=benign,
        traffic=traffic,
        aggregator=Max(),
    )
    x = dataset.activations[HOOK_POINT]
    n_benign = dataset.rows_of(19).stop
    mean, form = que_form(x[:n_benign].astype(np.float64), x.astype(np.float64), 4.0)

    evidence = score(detector, {HOOK_POINT: x[:50]})[:, 0]

    centred = x[:50] - mean
    expected = np.einsum("nd,de,ne->n", centred, form, centred)
    np.testing.assert_allclose(evidence, expected, rtol=1e-3)
    assert (np.linalg.eigvalsh(form) > 0).all()


def test_que_without_alpha_is_mahalanobis(dataset: Dataset) -> None:
    """
    With alpha 0 no direction weighs more than another.
    """
    requests = list(range(30))
    que = fit_que(
        dataset,
        name="q",
        hook_point=HOOK_POINT,
        benign=requests,
        traffic=list(range(60)),
        aggregator=Max(),
        alpha=0.0,
    )
    plain = fit_mahalanobis(
        dataset, name="m", hook_point=HOOK_POINT, benign=requests, aggregator=Max()
    )
    x = {HOOK_POINT: dataset.activations[HOOK_POINT]}

    np.testing.assert_allclose(score(que, x), score(plain, x), rtol=1e-3)


def test_canonical_que_is_best_where_it_should_be() -> None:
    """
    The bench's short form: on the synthetic case the canonical form finds most.
    """
    found = aurocs(n_repetitions=3)

    assert found["QUE, canonical"] > found["QUE, not whitened"]
    assert found["QUE, canonical"] > found["Mahalanobis"]


def test_a_coreset_covers_the_benign_tokens(dataset: Dataset) -> None:
    """
    A token of the coreset is at no distance, and unlike tokens are farther.
    """
    detector = fit_nearest(
        dataset,
        name="n",
        hook_point=HOOK_POINT,
        benign=list(range(30)),
        aggregator=Max(),
        n_coreset=16,
        is_normalised=False,
    )
    far = detector.coreset + np.float32(50)

    near_evidence = score(detector, {HOOK_POINT: detector.coreset})
    assert near_evidence.max() < 0.05
    assert score(detector, {HOOK_POINT: far}).min() > 10


def test_more_centres_than_tokens_are_refused(dataset: Dataset) -> None:
    """
    A coreset is of tokens that there are.
    """
    with pytest.raises(ValueError, match="n_coreset: expected at most"):
        fit_nearest(
            dataset,
            name="n",
            hook_point=HOOK_POINT,
            benign=[0],
            aggregator=Max(),
            n_coreset=500,
        )


def test_relative_is_fitted_on_both(dataset: Dataset) -> None:
    """
    Each half is the Mahalanobis detector of its own requests.
    """
    detector = fit_relative(
        dataset,
        name="r",
        hook_point=HOOK_POINT,
        benign=list(range(20)),
        background=list(range(60)),
        aggregator=Max(),
        rank=4,
    )

    assert (4, 4) == (detector.served.rank, detector.background.rank)
    assert not np.allclose(detector.served.mean, detector.background.mean)


def test_recipes_make_every_benign_family(tmp_path: Path) -> None:
    """
    Each family comes from a recipe into a bundle, and is read back from disk.
    """
    families = {
        "diagonal": "",
        "relative_mahalanobis": "rank = 4",
        "nearest": "n_coreset = 8",
        "que": "rank = 6",
    }
    detectors = [
        f'[[detector]]\nname = "{family}"\nfamily = "{family}"\n{extra}\n'
        f'hook_point = "{HOOK_POINT}"\n'
        'benign = { label = "behaviour", equals = "none" }\n'
        for family, extra in families.items()
    ]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "odd"\nversion = "1"\n[calibration]\nalpha = 0.4\n'
        + "\n".join(detectors)
    )
    for seed, name in enumerate(("fit", "calibration"), start=1):
        write_dataset(tmp_path / name, seed=seed)
    fit, calibration = (
        load_dataset(tmp_path / name) for name in ("fit", "calibration")
    )

    save_bundle(tmp_path / "out", fit_bundle(recipe, fit, calibration))

    made = load_bundle(tmp_path / "out").detectors
    assert [*families] == [detector.name for detector in made]
