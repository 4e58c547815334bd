# ruff: noqa: E402 - scikit-learn is imported once it is known to be there.
"""Detectors of scikit-learn behind our interface."""

from collections.abc import Callable
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
    require_sklearn,
    write_dataset,
)

require_sklearn()

from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from probes import (
    ActivationShapeError,
    ArtifactError,
    Dataset,
    Max,
    load_dataset,
    score,
)
from probes.arrays import Float32
from probes.codec import pack
from probes.detector import ActivationDetector
from probes.fit.baselines import (
    LibraryDetector,
    fit_isolation_forest,
    fit_lof,
    fit_one_class_svm,
)
from probes.fit.evaluate import auroc, request_statistics
from tests.contract import test_detectors as contract

BENIGN = [index for index in range(60) if index % 3]
FITS: dict[str, Callable[..., LibraryDetector]] = {
    "isolation-forest": fit_isolation_forest,
    "lof": fit_lof,
    "one-class-svm": fit_one_class_svm,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("baselines") / "data"
    write_dataset(path)
    return load_dataset(path)


@pytest.fixture(params=FITS)
def detector(request: pytest.FixtureRequest, dataset: Dataset) -> LibraryDetector:
    return fitted(request.param, dataset)


@pytest.fixture
def activations() -> dict[str, Float32]:
    return {
        HOOK_POINT: floats(contract.N_TOKENS, D_MODEL, seed=20) * np.float32(3),
        LATER_HOOK_POINT: floats(contract.N_TOKENS, D_MODEL, seed=21) * np.float32(3),
    }


def fitted(kind: str, dataset: Dataset, **changes: Any) -> LibraryDetector:
    return FITS[kind](
        dataset,
        **{
            "name": kind,
            "hook_point": HOOK_POINT,
            "benign": BENIGN,
            "aggregator": Max(),
            **changes,
        },
    )


# The contract of every detector, but for one check: the round trip through a bundle,
# since a model of a library is not stored (`test_a_bundle_refuses_it`).
CHECKS = [
    contract.test_is_a_detector,
    contract.test_evidence_is_finite_float32,
    contract.test_scoring_is_pure,
    contract.test_no_tokens_give_no_evidence,
    contract.test_bank_gives_the_columns_that_a_direct_score_uses,
    contract.test_huge_columns_give_finite_evidence,
    contract.test_nan_column_is_never_clean,
    contract.test_what_columns_do_not_decide_is_refused,
    contract.test_float64_columns_are_refused,
    contract.test_missing_hook_point_is_refused,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(
    check: Callable[..., None],
    detector: LibraryDetector,
    activations: dict[str, Float32],
) -> None:
    """
    What every detector must do, these do.
    """
    needs = check.__code__.co_varnames[: check.__code__.co_argcount]
    given = {"detector": detector, "activations": activations}

    check(**{name: given[name] for name in needs})


@pytest.mark.parametrize("shape", [(3, 99), (3,)])
def test_wrong_columns_are_refused(
    detector: LibraryDetector, shape: tuple[int, ...]
) -> None:
    """
    Columns of another width or rank are refused, as the contract's last check has it.
    """
    contract.test_wrong_columns_are_refused(detector, np.zeros(shape, np.float32))


def test_a_bundle_refuses_it(detector: LibraryDetector) -> None:
    """
    A model of a library is not stored: one line says so, and names the detector.
    """
    with pytest.raises(ArtifactError, match=r"got LibraryDetector") as caught:
        pack(detector)

    assert detector.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_anomalies_separate(dataset: Dataset, tmp_path: Path, detector: Any) -> None:
    """
    Requests with planted tokens have higher statistics than other benign ones.
    """
    write_dataset(tmp_path / "test", seed=1, shift=8.0)
    test = load_dataset(tmp_path / "test")

    planted = request_statistics(test, detector, range(0, 60, 3))
    benign = request_statistics(test, detector, BENIGN)

    assert auroc(planted, benign) > 0.95


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("isolation-forest", IsolationForest(random_state=0)),
        ("lof", LocalOutlierFactor(novelty=True)),
        ("one-class-svm", OneClassSVM(nu=0.1)),
    ],
)
def test_evidence_is_minus_score_samples(
    dataset: Dataset, kind: str, model: Any
) -> None:
    """
    Evidence is what scikit-learn says of the same tokens, the other way up.
    """
    changes = {} if kind == "isolation-forest" else {"is_standardised": False}
    detector = fitted(kind, dataset, **changes)
    rows = np.concatenate([np.r_[dataset.rows_of(index)] for index in BENIGN])
    x = dataset.activations[HOOK_POINT].astype(np.float64)

    expected = -model.fit(x[rows]).score_samples(x)

    evidence = score(detector, {HOOK_POINT: np.asarray(x, np.float32)})[:, 0]
    np.testing.assert_allclose(evidence, expected, rtol=1e-5)


def test_standardised_ones_do_not_know_scales(dataset: Dataset) -> None:
    """
    A coordinate a thousand times as large changes nothing where each is standardised.
    """
    x = floats(20, D_MODEL, seed=3)
    scales = np.ones(D_MODEL, dtype=np.float32)
    scales[4] = 1000
    activations = {HOOK_POINT: dataset.activations[HOOK_POINT] * scales}
    stretched = replace(dataset, activations=activations)

    for kind in ("lof", "one-class-svm"):
        plain = score(fitted(kind, dataset), {HOOK_POINT: x})
        wide = score(fitted(kind, stretched), {HOOK_POINT: x * scales})
        np.testing.assert_allclose(wide, plain, rtol=1e-4)


def test_a_token_that_is_not_a_number_is_alone_not_scored(
    detector: LibraryDetector, activations: dict[str, Float32]
) -> None:
    """
    A NaN or infinite token has NaN evidence, and the others what they have without.
    """
    expected = score(detector, activations)
    broken = activations[HOOK_POINT].copy()
    broken[2, 3], broken[4, 0] = np.nan, np.inf
    columns = np.zeros((contract.N_TOKENS, 1), dtype=np.float32)

    evidence = detector.head_on_activations(columns, {HOOK_POINT: broken})

    assert [2, 4] == np.flatnonzero(np.isnan(evidence[:, 0])).tolist()
    is_whole = ~np.isnan(evidence)
    np.testing.assert_allclose(evidence[is_whole], expected[is_whole], rtol=1e-6)


def test_huge_activations_give_finite_evidence(detector: LibraryDetector) -> None:
    """
    No finite activation, however large, makes evidence infinite or NaN.
    """
    most = np.finfo(np.float32).max
    x = np.full((2, D_MODEL), most, dtype=np.float32)
    x[1] *= -1

    assert np.isfinite(score(detector, {HOOK_POINT: x})).all()


def test_activations_of_another_length_are_refused(detector: LibraryDetector) -> None:
    """
    Fewer activations than columns are refused, naming the detector.
    """
    assert isinstance(detector, ActivationDetector)
    columns = np.zeros((4, 1), dtype=np.float32)

    with pytest.raises(ActivationShapeError, match=f"'{detector.name}'.* 3 and 4"):
        detector.head_on_activations(columns, {HOOK_POINT: floats(3, D_MODEL)})


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        *((kind, {"benign": []}, "expected benign tokens, got 0") for kind in FITS),
        ("lof", {"max_rows": 10}, "k: expected 1 to 9, .* got 20"),
        ("one-class-svm", {"nu": 0.0}, r"nu: expected a number in \(0, 1\], got 0.0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    dataset: Dataset, kind: str, changes: dict[str, Any], match: str
) -> None:
    """
    Too few tokens or an impossible option: one line that says so.
    """
    with pytest.raises(ValueError, match=match) as caught:
        fitted(kind, dataset, **changes)

    assert "\n" not in str(caught.value)
