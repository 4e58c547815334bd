# ruff: noqa: E402 - scikit-learn is imported once it is known to be there.
"""A fitted bundle and the data sets that it was made from."""

from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import D_MODEL, HOOK_POINT, require_sklearn, write_dataset

require_sklearn()

from probes import Dataset, DatasetWriter, load_dataset
from probes.fit.chunks import read_requests
from probes.fit.realised import replay_canaries
from probes.fit.recipe import fit_bundle
from probes.fit.select import Selector, select_requests

BACKDOOR = Selector(label="behaviour", equals="backdoor")
RECIPE = f"""
name = "demo"
version = "1"
[calibration]
alpha = 0.1
[[detector]]
name = "probe"
family = "logistic"
hook_point = "{HOOK_POINT}"
positive = {{ label = "behaviour", equals = "backdoor" }}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.fixture
def fit(tmp_path: Path) -> Dataset:
    write_dataset(tmp_path / "fit", seed=1)
    return load_dataset(tmp_path / "fit")


@pytest.fixture
def calibration(tmp_path: Path) -> Dataset:
    write_dataset(tmp_path / "calibration", seed=2)
    return load_dataset(tmp_path / "calibration")


def test_a_bundle_says_what_it_was_fitted_on(
    recipe: Path, fit: Dataset, calibration: Dataset
) -> None:
    """
    Its data set, hook points, normalisation, and canaries that are benign prompts.
    """
    bundle = fit_bundle(recipe, fit, calibration)

    assert (fit.sha256, "none") == (bundle.fit_sha256, bundle.normalisation)
    assert (HOOK_POINT,) == bundle.hook_points
    benign = select_requests(fit, BACKDOOR, is_negated=True)
    prompts = {tuple(fit.token_ids[fit.rows_of(i)][:4].tolist()) for i in benign}
    assert 4 == len({canary.token_ids for canary in bundle.canaries} & prompts)
    assert (4, 0.0) == replay_canaries(bundle, fit)


def test_canaries_are_benign_wherever_they_are_from(
    recipe: Path, fit: Dataset, calibration: Dataset, tmp_path: Path
) -> None:
    """
    Where no request that was fitted on is benign, canaries are of the calibration set.
    """
    selector = '{ label = "checked", equals = true }'
    text = RECIPE.replace("alpha = 0.1", f"alpha = 0.1\nbenign = {selector}")
    recipe.write_text(text)
    with DatasetWriter(
        tmp_path / "x", calibration.identity, [HOOK_POINT], D_MODEL
    ) as writer:
        for index, request in enumerate(calibration.requests):
            rows = calibration.rows_of(index)
            writer.append(
                request.request_id,
                {HOOK_POINT: calibration.activations[HOOK_POINT][rows]},
                calibration.token_ids[rows],
                calibration.positions[rows],
                request.n_prompt_tokens,
                {"checked": not BACKDOOR.matches(request)},
            )
    checked = load_dataset(tmp_path / "x")

    bundle = fit_bundle(recipe, fit, checked)

    assert (4, 0.0) == replay_canaries(bundle, checked)


def test_requests_are_read_and_not_mapped(fit: Dataset) -> None:
    """
    What a calibration scores is a copy, so that memory does not grow with the data set.
    """
    found = read_requests(fit, HOOK_POINT, [7, 3])

    mapped = fit.activations[HOOK_POINT]
    expected = np.concatenate([mapped[fit.rows_of(i)] for i in (7, 3)])
    np.testing.assert_array_equal(expected, found)
    for some in (found, read_requests(fit, HOOK_POINT, [3])):
        assert not isinstance(some, np.memmap)
        assert not np.shares_memory(some, mapped)
