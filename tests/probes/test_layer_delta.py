# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Layer-delta consistency against its formula, and the fit behind it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    require_sklearn,
)
from tests.probes.layer_builders import (
    LAYERS,
    layer_delta,
    layer_scores,
    write_layers,
)

require_sklearn()

from sklearn.covariance import LedoitWolf

from probes import (
    ActivationShapeError,
    Dataset,
    DatasetWriter,
    Detector,
    Max,
    ProjectionBank,
    load_bundle,
    load_dataset,
    save_bundle,
    score,
)
from probes import layer_delta as module
from probes.arrays import Float32, Float64
from probes.detector import ActivationDetector
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.layer_delta import fit_layer_delta
from probes.fit.mahalanobis import fit_mahalanobis
from probes.fit.recipe import fit_bundle
from probes.fit.select import Selector, select_requests
from probes.layer_delta import LayerDelta
from probes.layer_directions import LayerDeltaDirections

NONE = Selector(label="behaviour", equals="none")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("layers") / "data"
    write_layers(path, n_requests=150)
    return load_dataset(path)


def fitted(
    dataset: Dataset, rank: int | None = None, **changes: Any
) -> LayerDelta | LayerDeltaDirections:
    options: dict[str, Any] = {
        "name": "delta",
        "hook_points": LAYERS,
        "benign": select_requests(dataset, NONE),
        "aggregator": Max(),
        "rank": rank,
    }
    return fit_layer_delta(dataset, **(options | changes))


def everything(dataset: Dataset) -> dict[str, Float32]:
    return {hook: np.asarray(rows) for hook, rows in dataset.activations.items()}


def plain_lcf(dataset: Dataset) -> Float64:
    """Each token's evidence, as the paper's formula is written."""
    benign = np.concatenate(
        [np.r_[dataset.rows_of(i)] for i in select_requests(dataset, NONE)]
    )
    lengths = []
    for lower, upper in pairwise(LAYERS):
        x = dataset.activations[upper].astype(np.float64) - dataset.activations[lower]
        mu, sd = x[benign].mean(axis=0), x[benign].std(axis=0, ddof=1)
        lengths.append(np.linalg.norm((x - mu) / sd, axis=1))
    m = np.stack(lengths, axis=1)
    z = (m - m[benign].mean(axis=0)) / m[benign].std(axis=0, ddof=1)
    model = LedoitWolf().fit(z[benign])
    distance: Float64 = model.mahalanobis(z)
    return distance


def test_evidence_is_the_papers_formula(dataset: Dataset) -> None:
    """
    Every token's evidence is that of LCF, written out in float64 with scikit-learn.
    """
    detector = fitted(dataset)

    evidence = score(detector, everything(dataset))[:, 0]

    np.testing.assert_allclose(evidence, plain_lcf(dataset), rtol=1e-3, atol=1e-4)


def test_all_directions_are_the_whole_difference(dataset: Dataset) -> None:
    """
    With as many directions as d_model, columns say what whole activations do.
    """
    whole, columns = fitted(dataset), fitted(dataset, rank=D_MODEL)
    x = everything(dataset)

    assert isinstance(whole, ActivationDetector)
    assert not isinstance(columns, ActivationDetector)
    np.testing.assert_allclose(score(columns, x), score(whole, x), rtol=1e-3, atol=1e-3)


def test_few_directions_see_nothing_outside_them(dataset: Dataset) -> None:
    """
    What is added at right angles to all directions changes the whole form alone.
    """
    few, whole = fitted(dataset, rank=3), fitted(dataset)
    assert isinstance(few, LayerDeltaDirections)
    x = {hook: rows[:5] for hook, rows in everything(dataset).items()}
    outside = np.linalg.svd(few.rows.reshape(-1, D_MODEL).astype(np.float64))[2][-1]
    moved = x | {LATER_HOOK_POINT: x[LATER_HOOK_POINT] + np.float32(100) * outside}
    moved = {hook: rows.astype(np.float32) for hook, rows in moved.items()}

    np.testing.assert_allclose(score(few, moved), score(few, x), rtol=0.01, atol=0.01)
    assert (score(whole, moved) > 10 * score(whole, x)).all()


@pytest.mark.parametrize(("rank", "bar"), [(None, 0.9), (6, 0.75)])
def test_finds_what_no_layer_shows_alone(
    dataset: Dataset, rank: int | None, bar: float
) -> None:
    """
    A detour between two layers that ends where it would have is found.
    """
    detector = fitted(dataset, rank)
    benign = select_requests(dataset, NONE)
    planted = select_requests(dataset, NONE, is_negated=True)
    last = fit_mahalanobis(
        dataset,
        name="last",
        hook_point=LATER_HOOK_POINT,
        benign=benign,
        aggregator=Max(),
    )

    def separates(one: Detector) -> float:
        return auroc(
            request_statistics(dataset, one, planted),
            request_statistics(dataset, one, benign),
        )

    assert separates(detector) > bar > 0.7 > separates(last)


def test_rows_are_taken_a_few_at_a_time(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    However many tokens are held at once, their evidence is the same.
    """
    detector, x = fitted(dataset), everything(dataset)
    expected = score(detector, x)
    monkeypatch.setattr(module, "_MAX_VALUES", 7 * D_MODEL)

    np.testing.assert_array_equal(expected, score(detector, x))


def test_directions_share_a_bank_of_two_k_rows_a_pair(dataset: Dataset) -> None:
    """
    A hook point between two pairs has the rows of both, the outer ones of one.
    """
    bank = ProjectionBank.compile([fitted(dataset, rank=2)])

    assert [2, 4, 2] == [bank.n_columns(hook) for hook in LAYERS]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hook_points": LAYERS[:1]}, "two or more by rising layer"),
        ({"hook_points": LAYERS[::-1]}, "two or more by rising layer"),
        ({"rank": 13}, "rank: expected 1 to 12, got 13"),
        ({"benign": []}, "detector 'delta': expected benign tokens, got 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    dataset: Dataset, changes: dict[str, Any], match: str
) -> None:
    """
    Hook points that do not rise, too few tokens or a wrong rank: one line that says so.
    """
    with pytest.raises(ValueError, match=match) as caught:
        fitted(dataset, **changes)

    assert "\n" not in str(caught.value)


def test_a_difference_that_never_varies_is_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    """
    A coordinate to which nothing is ever added has no deviation to divide by.
    """
    still = floats(20, D_MODEL, seed=1)
    moved = still + floats(20, D_MODEL, seed=2)
    moved[:, 4] = still[:, 4]
    hooks = [HOOK_POINT, LATER_HOOK_POINT]
    with DatasetWriter(tmp_path, dataset.identity, hooks, D_MODEL) as writer:
        rows = dict(zip(hooks, (still, moved), strict=True))
        positions = np.arange(20, dtype=np.int32)
        writer.append("r", rows, positions, positions, n_prompt_tokens=1, labels={})

    with pytest.raises(ValueError, match=r"got constant ones: \[4\]"):
        fitted(load_dataset(tmp_path), hook_points=hooks, benign=[0])


def test_huge_activations_give_finite_evidence() -> None:
    """
    No finite activation, however large, makes evidence infinite or NaN.
    """
    most = np.full((1, D_MODEL), np.finfo(np.float32).max, dtype=np.float32)

    evidence = score(layer_delta(), {HOOK_POINT: most, LATER_HOOK_POINT: -most})

    assert np.isfinite(evidence).all()


def test_activations_of_another_length_are_refused() -> None:
    """
    Fewer activations than columns are refused, naming the detector.
    """
    detector = layer_delta()
    x = floats(3, D_MODEL)
    columns = np.zeros((4, 2), dtype=np.float32)

    with pytest.raises(ActivationShapeError, match=r"'layer-delta'.*\[3, 3\] and 4"):
        detector.head_on_activations(columns, {HOOK_POINT: x, LATER_HOOK_POINT: x})


def test_scores_of_another_number_of_layers_are_refused() -> None:
    """
    What is benign of two lengths does not fit a detector of one.
    """
    detector = layer_delta()

    with pytest.raises(ValueError, match=r"scores.means: expected \(1,\)"):
        LayerDelta(
            name="delta",
            hook_points=detector.hook_points,
            means=detector.means,
            deviations=detector.deviations,
            scores=layer_scores(2),
            aggregator=Max(),
        )


@pytest.mark.parametrize("key", ["", "rank = 2", f"hook_points = {[*LAYERS[::2]]}"])
def test_a_recipe_makes_it(tmp_path: Path, key: str) -> None:
    """
    From a recipe into a bundle and back from disk, whole and in few directions.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "odd"\nversion = "1"\n[calibration]\nalpha = 0.4\n'
        '[[detector]]\nname = "delta"\n'
        f'family = "layer_delta"\n{key}\n'
        'benign = { label = "behaviour", equals = "none" }\n'
    )
    for seed, name in enumerate(("fit", "calibration"), start=1):
        write_layers(tmp_path / name, seed=seed)
    fit, calibration = (
        load_dataset(tmp_path / name) for name in ("fit", "calibration")
    )

    bundle = fit_bundle(recipe, fit, calibration)
    save_bundle(tmp_path / "out", bundle)

    made, read = bundle.detectors[0], load_bundle(tmp_path / "out").detectors[0]
    expected = (LayerDeltaDirections if "rank" in key else LayerDelta,) * 2
    assert expected == (type(made), type(read))
    hooks = {projection.hook_point for projection in made.projections}
    assert {*(LAYERS[::2] if "hook" in key else LAYERS)} == hooks
    x = everything(fit)
    np.testing.assert_array_equal(score(made, x), score(read, x))
