# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Cascades from a fit and from recipes."""

from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import (
    linear,
    mlp,
    require_sklearn,
    write_sae,
)
from tests.probes.layer_builders import LAYERS, write_layers

require_sklearn()

from probes import (
    Dataset,
    Max,
    load_bundle,
    load_dataset,
    save_bundle,
    score,
)
from probes.cascade import Cascade
from probes.detector import ActivationDetector
from probes.fit.cascade import fit_cascade
from probes.fit.recipe import fit_bundle


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("cascade") / "data"
    write_layers(path)
    return load_dataset(path)


@pytest.mark.parametrize("pass_share", [0.5, 0.9, 0.99])
def test_most_benign_tokens_are_let_through(
    dataset: Dataset, pass_share: float
) -> None:
    """
    At least the share asked for is let through, and not a token more than need be.
    """
    benign = [i for i in range(60) if i % 3]
    first, second = linear(), mlp()
    made = fit_cascade(
        dataset,
        name="c",
        first=first,
        second=second,
        benign=benign,
        aggregator=Max(),
        pass_share=pass_share,
    )
    rows = np.concatenate([np.r_[dataset.rows_of(i)] for i in benign])
    x = {hook: values[rows] for hook, values in dataset.activations.items()}

    judged = score(first, x)
    assert pass_share <= (judged <= made.level).mean() < pass_share + 1 / len(rows)
    assert score(second, x).min() == np.float32(made.floor)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pass_share": 1.0}, r"pass_share: expected a number in \(0, 1\), got 1.0"),
        ({"benign": []}, "detector 'c': expected benign tokens, got 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    dataset: Dataset, changes: dict[str, object], match: str
) -> None:
    """
    A share that lets everything through, or no tokens: one line that says so.
    """
    options: dict[str, object] = {
        "name": "c",
        "first": linear(),
        "second": mlp(),
        "benign": [1],
        "aggregator": Max(),
    }
    with pytest.raises(ValueError, match=match):
        fit_cascade(dataset, **(options | changes))  # type: ignore[arg-type]


RECIPE = f"""
name = "stages"
version = "1"
[calibration]
alpha = 0.2
[[detector]]
name = "c"
family = "cascade"
benign = {{ label = "behaviour", equals = "none" }}
pass_share = 0.5
[detector.first]
family = "mass_mean"
hook_point = "{LAYERS[1]}"
positive = {{ label = "behaviour", equals = "bypass" }}
[detector.second]
family = "mahalanobis"
hook_point = "{LAYERS[2]}"
rank = 4
"""
OTHER_SECONDS = {
    "layer_delta": 'family = "layer_delta"',
    "sae": f'family = "sae"\nhook_point = "{LAYERS[1]}"\npath = "sae"\n'
    'model_name = "tiny"\nfeatures = [3]',
    "cascade": 'family = "cascade"\n[detector.second.first]\nfamily = "mahalanobis"\n'
    f'solver = "stream"\nhook_point = "{LAYERS[0]}"\n[detector.second.second]\n'
    f'family = "diagonal"\nhook_point = "{LAYERS[0]}"',
}


@pytest.fixture
def calibration(tmp_path: Path) -> Dataset:
    write_layers(tmp_path / "calibration", seed=7)
    return load_dataset(tmp_path / "calibration")


@pytest.mark.parametrize("second", ["", *OTHER_SECONDS])
def test_a_recipe_makes_it(
    dataset: Dataset, calibration: Dataset, tmp_path: Path, second: str
) -> None:
    """
    From a recipe into a bundle and back from disk, whatever the second stage is.
    """
    write_sae(tmp_path / "sae", {"hook_name": LAYERS[1], "model_name": "tiny"})
    head, _, usual = RECIPE.partition("[detector.second]\n")
    recipe = tmp_path / "recipe.toml"
    stage = OTHER_SECONDS.get(second, usual)
    recipe.write_text(f"{head}[detector.second]\n{stage}\n")

    bundle = fit_bundle(recipe, dataset, calibration)
    save_bundle(tmp_path / "out", bundle)

    made, read = bundle.detectors[0], load_bundle(tmp_path / "out").detectors[0]
    assert isinstance(made, Cascade)
    assert isinstance(made, ActivationDetector) is (second == "layer_delta")
    assert ("c-first", "c-second") == (made.first.name, made.second.name)
    x = {hook: np.asarray(rows) for hook, rows in dataset.activations.items()}
    np.testing.assert_array_equal(score(made, x), score(read, x))


def test_stages_count_the_tokens_that_the_cascade_counts(
    dataset: Dataset, calibration: Dataset, tmp_path: Path
) -> None:
    """
    A cascade over the answer has stages that were fitted on answers.
    """
    recipe = tmp_path / "recipe.toml"
    answer = 'aggregator = { name = "ema_max", alpha = 0.5, tokens = "answer" }'
    recipe.write_text(RECIPE.replace("pass_share = 0.5", f"pass_share = 0.5\n{answer}"))

    made = fit_bundle(recipe, dataset, calibration).detectors[0]

    assert isinstance(made, Cascade)
    stages = (made.first, made.second)
    assert ["answer"] * 2 == [stage.aggregator.tokens for stage in stages]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("rank = 4", "rank = 0", r"detector\[0\]\.second\.rank: expected an integer"),
        ("rank = 4", "rank = 13", r"detector\[0\]: rank: expected 1 to 12"),
        ("rank = 4", "rnak = 4", r"detector\[0\]\.second\.rnak: unknown key"),
        ("pass_share = 0.5", "pass_share = 1", r"detector\[0\]\.pass_share: expected"),
        (
            "[detector.first]",
            "[detector.one]",
            r"detector\[0\]\.first: expected a table",
        ),
        ('"mahalanobis"', '"svm"', r"detector\[0\]\.second\.family: expected one of"),
        (LAYERS[2], "blocks.9.hook_resid_post", r"detector\[0\]: hook_point: expected"),
        (
            "rank = 4",
            'aggregator = { name = "max", tokens = "answer" }',
            r"detector\[0\]\.second\.aggregator: expected one for .* 'all' tokens",
        ),
        ('benign = { label = "behaviour", equals = "none" }', "", r"second\.benign"),
    ],
)
def test_mistakes_in_a_recipe_name_their_key(
    dataset: Dataset,
    calibration: Dataset,
    tmp_path: Path,
    old: str,
    new: str,
    match: str,
) -> None:
    """
    A mistake in a stage is one line with file, detector, stage and key.
    """
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace(old, new))

    with pytest.raises(ValueError, match=match) as caught:
        fit_bundle(recipe, dataset, calibration)

    assert "\n" not in str(caught.value)
