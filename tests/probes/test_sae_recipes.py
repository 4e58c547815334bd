# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Recipes that watch SAE checkpoints of any format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    identity,
    require_sklearn,
)

require_sklearn()

from probes.bundle import Bundle
from probes.dataset import load_dataset
from probes.dataset_writer import DatasetWriter
from probes.detector import score
from probes.errors import RecipeError
from probes.fit.recipe import fit_bundle
from probes.sae_formats import load_sae
from tests.contract.sae_checkpoints import save_json, save_tensors

SOURCES = (HOOK_POINT, LATER_HOOK_POINT)
HEAD = """
name = "features"
version = "1"

[calibration]
alpha = 0.1

[[detector]]
name = "watched"
family = "sae"
benign = { label = "behaviour", equals = "none" }
features = [3, 5]
model_name = "tiny"
"""


def write_requests(path: Path, seed: int) -> None:
    """Benign requests, read at two hook points."""
    rng = np.random.default_rng(seed)
    with DatasetWriter(path, identity(), list(SOURCES), D_MODEL) as writer:
        for index in range(60):
            shape = (int(rng.integers(5, 9)), D_MODEL)
            writer.append(
                f"request-{seed}-{index}",
                {h: rng.normal(size=shape).astype(np.float32) for h in SOURCES},
                rng.integers(0, 1 << 20, shape[0]).astype(np.int32),
                np.arange(shape[0], dtype=np.int32),
                n_prompt_tokens=2,
                labels={"behaviour": "none"},
            )


@pytest.fixture
def fitted(tmp_path: Path) -> Callable[[str], Bundle]:
    """A bundle from the recipe with some lines more."""
    write_requests(tmp_path / "fit", seed=1)
    write_requests(tmp_path / "calibration", seed=2)

    def fit(more: str) -> Bundle:
        (tmp_path / "recipe.toml").write_text(HEAD + more)
        return fit_bundle(
            tmp_path / "recipe.toml",
            load_dataset(tmp_path / "fit"),
            load_dataset(tmp_path / "calibration"),
        )

    return fit


def write_crosscoder(path: Path) -> None:
    tensors = {
        "W_enc": floats(2, D_MODEL, 30, seed=1),
        "b_enc": floats(30, seed=2),
        "W_dec": floats(30, 2, D_MODEL, seed=3),
        "b_dec": floats(2, D_MODEL, seed=4),
    }
    save_tensors(path, tensors)


def test_a_crosscoder_is_watched_at_its_sources(
    tmp_path: Path, fitted: Callable[[str], Bundle]
) -> None:
    """
    A recipe names a crosscoder's places in its order; the detector reads them all.
    """
    path = tmp_path / "cc.safetensors"
    write_crosscoder(path)
    points = f"hook_points = {list(SOURCES)}\n".replace("'", '"')

    (detector,) = fitted(f'path = "cc.safetensors"\n{points}').detectors

    x = floats(40, 2 * D_MODEL, seed=5)
    sae = load_sae(path, hook_points=SOURCES, model_name="tiny")
    parts = dict(zip(SOURCES, np.split(x, 2, axis=1), strict=True))
    expected = sae.encode(x)[:, [3, 5]].sum(axis=1)
    found = score(detector, parts)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert SOURCES == tuple(p.hook_point for p in detector.projections)


def test_a_topk_sae_is_watched_by_the_exact_family(
    tmp_path: Path, fitted: Callable[[str], Bundle]
) -> None:
    """
    A sparsify checkpoint, whose files name no model, is fitted from a recipe.
    """
    sae = tmp_path / "layers.1"
    d_sae = 4 * D_MODEL
    config = {"d_in": D_MODEL, "k": 6, "num_latents": 0, "expansion_factor": 4}
    save_json(sae / "cfg.json", config)
    tensors = {
        "encoder.weight": floats(d_sae, D_MODEL, seed=1),
        "encoder.bias": floats(d_sae, seed=2),
        "W_dec": floats(d_sae, D_MODEL, seed=3),
        "b_dec": floats(D_MODEL, seed=4),
    }
    save_tensors(sae / "sae.safetensors", tensors)
    common = f'path = "layers.1"\nhook_point = "{HOOK_POINT}"\n'

    (detector,) = fitted(common).detectors

    assert "TopKFeatureDetector" == type(detector).__name__
    with pytest.raises(RecipeError, match=r"detector\[0\]: .*k: expected 7, as given"):
        fitted(common + "k = 7\n")


@pytest.mark.parametrize(
    ("points", "match"),
    [
        (f'["{HOOK_POINT}"]', r"detector\[0\]\.hook_points: expected different ones"),
        (f'["{HOOK_POINT}", "x"]', r"detector\[0\]\.hook_points: "),
        (
            f'["{HOOK_POINT}", "blocks.7.hook_resid_post"]',
            r"detector\[0\]: hook_points: expected one of",
        ),
    ],
)
def test_wrong_sources_are_named(
    tmp_path: Path, fitted: Callable[[str], Bundle], points: str, match: str
) -> None:
    """
    Places that are none, too few or not in the data set are one line.
    """
    write_crosscoder(tmp_path / "cc.safetensors")

    with pytest.raises(RecipeError, match=match):
        fitted(f'path = "cc.safetensors"\nhook_points = {points}\n')
