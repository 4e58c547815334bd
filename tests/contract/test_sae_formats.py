"""Every checkpoint format against its library's formula, on files as it writes them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes import ArtifactError, Max, SAEFeatureDetector, score
from probes.arrays import Float32
from probes.sae_formats import FORMATS, SAE, format_of, load_sae, write_sae
from probes.sae_formats.writing import canonical_format
from probes.topk import TopKFeatureDetector
from tests.bench.sae_formats import n_wrong
from tests.contract.sae_checkpoints import D_IN, D_SAE, Case, weights
from tests.contract.sae_files import FILES
from tests.contract.sae_folders import FOLDERS
from tests.contract.sae_saelens import SAELENS

CASES = SAELENS | FOLDERS | FILES

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def inputs(case: Case) -> Float32:
    """Activations of 200 tokens, sources side by side."""
    return weights(200, D_IN * len(case.hook_points), seed=20) * np.float32(3)


@all_cases
def test_features_are_those_of_the_formula(tmp_path: Path, case: Case) -> None:
    """
    All features equal the published formula within 1e-5 of the largest feature.
    """
    path, formula = case.write(tmp_path / "checkpoint")
    x = inputs(case)

    sae = load_sae(path, **case.facts)

    expected = formula(x.astype(np.float64))
    features = sae.encode(x)
    assert (len(x), D_SAE) == features.shape
    assert 0.01 < (expected != 0).mean() < 0.9
    # A value within rounding of a threshold may fall on either side of it.
    gap = np.abs(features - expected) / np.abs(expected).max()
    assert gap.max() < 1e-5


@all_cases
def test_what_it_is_for_is_known(tmp_path: Path, case: Case) -> None:
    """
    Format, kind, hook points and model come from the files or from who gave them.
    """
    path, _ = case.write(tmp_path / "checkpoint")

    sae = load_sae(path, **case.facts)

    assert case.format == format_of(path)
    assert case.activation == sae.activation
    assert case.hook_points == sae.hook_points
    assert case.model_name == sae.model_name


@all_cases
def test_a_few_features_are_the_full_encoders(tmp_path: Path, case: Case) -> None:
    """
    A detector of a few features has the evidence that the full encoder gives.
    """
    path, _ = case.write(tmp_path / "checkpoint")
    # Detectors read the residual stream only; the formula is the same elsewhere.
    places = tuple(f"blocks.{i}.hook_resid_post" for i in range(len(case.hook_points)))
    sae = replace(load_sae(path, **case.facts), hook_points=places)
    x = inputs(case)

    evidence = score(_detector(sae), dict(zip(places, _parts(x, places), strict=True)))

    features = np.maximum(sae.encode(x), 0)[:, [5, 40]].astype(np.float64)
    expected = (features - 0.1 > 0).sum(axis=1)
    assert 0 < expected.sum()
    np.testing.assert_array_equal(evidence[:, 0], expected)


def _detector(sae: SAE) -> SAEFeatureDetector | TopKFeatureDetector:
    cls = SAEFeatureDetector if sae.is_exact_on_subset else TopKFeatureDetector
    return cls.from_sae(
        sae,
        name="few",
        features=[5, 40],
        rule="count",
        levels=[0.1, 0.1],
        aggregator=Max(),
    )


def _parts(x: Float32, places: tuple[str, ...]) -> list[Float32]:
    return [np.ascontiguousarray(part) for part in np.split(x, len(places), axis=1)]


@all_cases
@pytest.mark.parametrize("fact", [{"scale": 0.5}, {"k": 3}], ids=["scale", "k"])
def test_facts_have_to_agree(
    tmp_path: Path, case: Case, fact: dict[str, float]
) -> None:
    """
    Nothing that was given is dropped: it is used, or it is a contradiction.
    """
    path, _ = case.write(tmp_path / "checkpoint")
    (key,) = fact
    if key in case.facts or (case.format, key) == ("crosscoder", "k"):
        pytest.skip("the caller alone decides it")

    with pytest.raises(ArtifactError, match=f"{key}: expected") as caught:
        load_sae(path, **{**case.facts, **fact})

    assert "\n" not in str(caught.value)


@all_cases
def test_missing_facts_are_asked_for(tmp_path: Path, case: Case) -> None:
    """
    Without a fact that the files do not hold, the line says which one to give.
    """
    path, _ = case.write(tmp_path / "checkpoint")

    for key in case.facts:
        facts = {name: value for name, value in case.facts.items() if name != key}
        if (case.format, key) == ("crosscoder", "k"):
            continue  # without it, a crosscoder is a ReLU one
        name = "hook_point" if key == "hook_points" else key
        with pytest.raises(ArtifactError, match=f"{name}: .*give it"):
            load_sae(path, **facts)


@all_cases
def test_what_is_imported_is_the_same_sae(tmp_path: Path, case: Case) -> None:
    """
    Written in the canonical form and read again, told nothing, it has equal features.
    """
    path, _ = case.write(tmp_path / "checkpoint")
    sae = load_sae(path, **case.facts)

    form = write_sae(tmp_path / "imported", sae)

    again = load_sae(tmp_path / "imported")
    x = inputs(case)
    assert form == canonical_format(sae) == format_of(tmp_path / "imported")
    np.testing.assert_allclose(again.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    assert (sae.hook_points, sae.model_name) == (again.hook_points, again.model_name)
    assert (sae.is_transcoder, sae.k) == (again.is_transcoder, again.k)
    with pytest.raises(ArtifactError, match="imported: expected nothing there"):
        write_sae(tmp_path / "imported", sae)


def test_the_bench_counts_wrong_outcomes() -> None:
    """
    The long comparison of rules with the full encoder works, and finds none wrong.
    """
    wrong, held = n_wrong("qwen-scope", CASES["qwen-scope"], 2_000)

    assert 0 == wrong
    assert 0 < held


def test_every_format_has_a_case() -> None:
    """
    No reader goes untested.
    """
    assert set(FORMATS) - {"innerwatch"} == {case.format for case in CASES.values()}
