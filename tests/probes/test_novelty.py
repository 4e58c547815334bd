# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Features that no benign token switches on."""

from pathlib import Path

import numpy as np
import pytest

from probes import Dataset, Max, load_dataset, score
from probes.sae_formats.record import SAE
from tests.probes.builders import (
    HOOK_POINT,
    require_sklearn,
    sae,
    write_dataset,
    write_sae,
)

require_sklearn()

from probes.fit.novelty import fit_novelty
from probes.fit.recipe import fit_bundle

BENIGN = list(range(4))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_dataset(tmp_path / "data")
    return load_dataset(tmp_path / "data")


def rarely_on(activation: str) -> SAE:
    """An SAE at the data set's hook point, with features of every rarity."""
    return sae(
        activation,
        hook_points=(HOOK_POINT,),
        b_enc=np.linspace(2, -14, 60).astype(np.float32),
    )


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_counts_what_no_benign_token_switches_on(
    dataset: Dataset, activation: str
) -> None:
    """
    Evidence is 0 on what it was fitted on, and elsewhere the number of new features.
    """
    one = rarely_on(activation)
    x = dataset.activations[HOOK_POINT]
    n_benign = dataset.rows_of(BENIGN[-1]).stop
    features = one.encode(x) != 0
    is_new = ~features[:n_benign].any(axis=0)

    detector = fit_novelty(dataset, one, name="n", benign=BENIGN, aggregator=Max())

    evidence = score(detector, {HOOK_POINT: x})[:, 0]
    np.testing.assert_array_equal(features[:, is_new].sum(axis=1), evidence)
    assert not evidence[:n_benign].any()
    assert evidence.any()


def test_no_more_features_than_asked_for(dataset: Dataset) -> None:
    """
    Each feature is a column: their number can be bounded.
    """
    detector = fit_novelty(
        dataset,
        rarely_on("relu"),
        name="n",
        benign=BENIGN,
        aggregator=Max(),
        max_features=3,
    )

    assert 3 == detector.projections[0].n_columns


def test_where_every_feature_is_on_there_is_nothing_new(dataset: Dataset) -> None:
    """
    An SAE whose features all fire on benign tokens is refused, saying so.
    """
    always = sae("relu", hook_points=(HOOK_POINT,), b_enc=np.full(60, 90, np.float32))

    with pytest.raises(ValueError, match="got none of 60"):
        fit_novelty(dataset, always, name="n", benign=BENIGN, aggregator=Max())


def test_a_recipe_makes_it(tmp_path: Path) -> None:
    """
    From a checkpoint and a recipe to a detector in a bundle.
    """
    write_sae(tmp_path / "sae", {"hook_name": HOOK_POINT, "model_name": "tiny"})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "odd"\nversion = "1"\n[calibration]\nalpha = 0.4\n'
        '[[detector]]\nname = "new"\n'
        f'family = "sae_novelty"\nhook_point = "{HOOK_POINT}"\npath = "sae"\n'
        'benign = { label = "behaviour", equals = "backdoor" }\n'
        'model_name = "tiny"\naggregator = { name = "max" }\n'
    )
    for seed, name in enumerate(("fit", "calibration"), start=1):
        write_dataset(tmp_path / name, seed=seed, n_requests=24)
    fit, calibration = (
        load_dataset(tmp_path / name) for name in ("fit", "calibration")
    )

    bundle = fit_bundle(recipe, fit, calibration)

    assert ["new"] == [detector.name for detector in bundle.detectors]
