# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Ensembles over layers against their members, and the fits behind them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    identity,
    linear,
    require_sklearn,
)
from tests.probes.layer_builders import LAYERS, ensemble

require_sklearn()

from probes import (
    Dataset,
    DatasetWriter,
    LinearProbe,
    Max,
    Mean,
    load_bundle,
    load_dataset,
    save_bundle,
    score,
)
from probes.arrays import Float32
from probes.ensemble import Ensemble
from probes.fit.ensemble import EnsembleOptions, fit_ensemble, fit_layer_ensemble
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.logistic import LogisticOptions, fit_logistic
from probes.fit.recipe import fit_bundle

POSITIVE, NEGATIVE = list(range(0, 90, 3)), [i for i in range(90) if i % 3]


def write(path: Path, seed: int) -> Dataset:
    """Every third request moves along another direction at each layer, a little."""
    rng = np.random.default_rng(seed)
    with DatasetWriter(path, identity(), LAYERS, D_MODEL) as writer:
        for index in range(90):
            n = int(rng.integers(5, 12))
            rows = {}
            for layer, hook in enumerate(LAYERS):
                rows[hook] = rng.normal(size=(n, D_MODEL)).astype(np.float32) + 3
                rows[hook] *= np.float32(10**layer)
                rows[hook][:, layer] += 10**layer * 0.8 * (index % 3 == 0)
            writer.append(
                f"r{seed}-{index}",
                rows,
                rng.integers(0, 1 << 20, n).astype(np.int32),
                np.arange(n, dtype=np.int32),
                n_prompt_tokens=2,
                labels={"bad": index % 3 == 0},
            )
    return load_dataset(path)


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("ensemble") / "fit", seed=1)


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("ensemble") / "test", seed=2)


def everything(dataset: Dataset) -> dict[str, Float32]:
    return {hook: np.asarray(rows) for hook, rows in dataset.activations.items()}


def member(dataset: Dataset, hook_point: str) -> LinearProbe:
    return fit_logistic(
        dataset,
        name="member",
        hook_point=hook_point,
        positive=POSITIVE,
        negative=NEGATIVE,
        aggregator=Mean(),
        options=LogisticOptions(rounds=1),
    )


def separates(dataset: Dataset, detector: LinearProbe | Ensemble) -> float:
    return auroc(
        request_statistics(dataset, detector, POSITIVE),
        request_statistics(dataset, detector, NEGATIVE),
    )


@pytest.mark.parametrize("combination", ["mean", "max", "logistic"])
def test_evidence_is_the_members_combined(combination: str) -> None:
    """
    Evidence is the mean, maximum or weighted sum of the members' z-scores.
    """
    detector = ensemble(combination)
    x = {
        HOOK_POINT: floats(20, D_MODEL, seed=80),
        LATER_HOOK_POINT: floats(20, D_MODEL, seed=81),
    }

    z = np.stack(
        [
            (x[hook] @ detector.weights[i] + detector.biases[i] - detector.means[i])
            / detector.deviations[i]
            for i, hook in enumerate(detector.hook_points)
        ],
        axis=1,
    )
    expected = {"mean": z.mean(axis=1), "max": z.max(axis=1)}
    if detector.member_weights is not None:
        expected["logistic"] = z @ detector.member_weights + detector.bias
    evidence = score(detector, x)[:, 0]
    np.testing.assert_allclose(evidence, expected[combination], rtol=1e-4, atol=1e-4)


def test_members_are_standardised_on_negatives(fit: Dataset) -> None:
    """
    Over the negative tokens, each member's score has mean 0 and deviation 1.
    """
    members = [member(fit, hook) for hook in LAYERS]
    made = fit_ensemble(
        fit, name="e", members=members, negative=NEGATIVE, aggregator=Max()
    )
    rows = np.concatenate([np.r_[fit.rows_of(i)] for i in NEGATIVE])
    x = {hook: values[rows] for hook, values in everything(fit).items()}

    for index, one in enumerate(members):
        z = (score(one, x) - made.means[index]) / made.deviations[index]
        np.testing.assert_allclose(z.mean(), 0, atol=1e-3)
        np.testing.assert_allclose(z.std(ddof=1), 1, rtol=1e-3)


@pytest.mark.parametrize("kind", ["logistic", "mass_mean", "lda"])
@pytest.mark.parametrize("combination", ["mean", "logistic"])
def test_all_layers_together_separate_better_than_any(
    fit: Dataset, test: Dataset, kind: str, combination: str
) -> None:
    """
    What shows a little at every layer shows on new requests in the ensemble.
    """
    made = fit_layer_ensemble(
        fit,
        name="e",
        hook_points=LAYERS,
        positive=POSITIVE,
        negative=NEGATIVE,
        aggregator=Mean(),
        options=EnsembleOptions(
            kind=kind,
            combination=combination,
            logistic=LogisticOptions(rounds=1),
        ),
    )

    best = max(separates(test, member(fit, hook)) for hook in LAYERS)
    assert separates(test, made) > best


def test_a_useless_member_is_weighed_down(fit: Dataset, test: Dataset) -> None:
    """
    Of a good and a random member the regression on top takes the good one.
    """
    blind = floats(D_MODEL, seed=3)
    blind[1] = 0  # the direction in which this layer's positives move
    useless = replace(linear(hook_point=LAYERS[1]), weight=blind)
    members = [member(fit, LAYERS[0]), useless]
    made = fit_ensemble(
        test,
        name="e",
        members=members,
        positive=POSITIVE,
        negative=NEGATIVE,
        aggregator=Mean(),
        combination="logistic",
        options=LogisticOptions(rounds=1),
    )

    assert made.member_weights is not None
    assert made.member_weights[0] > 5 * abs(made.member_weights[1])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"combination": "median"}, "combination: expected one of"),
        ({"combination": "logistic"}, "expected positive requests with tokens, got 0"),
        ({"negative": []}, "ensemble 'e': expected negative tokens, got 0"),
        ({"members": [linear()]}, "hook_points: expected two or more, got 1"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    fit: Dataset, changes: dict[str, Any], match: str
) -> None:
    """
    An unknown combination, no tokens or one member: one line that says so.
    """
    options: dict[str, Any] = {
        "members": [linear(), linear()],
        "negative": NEGATIVE,
    }

    with pytest.raises(ValueError, match=match) as caught:
        fit_ensemble(fit, name="e", aggregator=Max(), **(options | changes))

    assert "\n" not in str(caught.value)


def test_weights_without_a_regression_are_refused() -> None:
    """
    Member weights mean nothing to a maximum, and are not ignored.
    """
    one = ensemble("logistic")

    with pytest.raises(ValueError, match="expected them for 'logistic'"):
        Ensemble(
            name="e",
            hook_points=one.hook_points,
            weights=one.weights,
            biases=one.biases,
            means=one.means,
            deviations=one.deviations,
            combination="max",
            aggregator=Max(),
            member_weights=one.member_weights,
        )


RECIPE = f"""
name = "layers"
version = "1"
[calibration]
alpha = 0.2
[[detector]]
name = "e"
family = "ensemble"
members = {[*LAYERS]}
positive = {{ label = "bad", equals = true }}
combination = "logistic"
fit = "mass_mean"
aggregator = {{ name = "mean" }}
"""


def test_a_recipe_makes_it(fit: Dataset, test: Dataset, tmp_path: Path) -> None:
    """
    From a recipe into a bundle and back from disk.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)

    bundle = fit_bundle(recipe, fit, test)
    save_bundle(tmp_path / "out", bundle)

    made, read = bundle.detectors[0], load_bundle(tmp_path / "out").detectors[0]
    assert isinstance(made, Ensemble)
    assert LAYERS == made.hook_points
    x = everything(test)
    np.testing.assert_array_equal(score(made, x), score(read, x))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"mass_mean"', '"svm"', r"detector\[0\]\.fit: expected one of"),
        ('"logistic"', '"median"', r"detector\[0\]\.combination: expected one of"),
        ("alpha = 0.2", "alpha = 0.2", ""),
        ('fit = "mass_mean"', "held_out = 1.0", r"detector\[0\]\.held_out: expected"),
        (f"{[*LAYERS]}", "['blocks.1']", r"detector\[0\]\.members: expected"),
        (f"{[*LAYERS]}", f"['{LAYERS[0]}']", r"members: expected different ones"),
        ("blocks.5", "blocks.6", r"detector\[0\]: members: expected one of"),
    ],
)
def test_mistakes_in_a_recipe_name_their_key(
    fit: Dataset, test: Dataset, tmp_path: Path, old: str, new: str, match: str
) -> None:
    """
    A mistake is one line with file, detector and key; without one there is none.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace(old, new))
    if not match:
        assert 1 == len(fit_bundle(recipe, fit, test).detectors)
        return

    with pytest.raises(ValueError, match=match) as caught:
        fit_bundle(recipe, fit, test)

    assert "\n" not in str(caught.value)
