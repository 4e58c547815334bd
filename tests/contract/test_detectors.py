"""What every detector must do. A new one is one line in `builders.detectors`."""

from pathlib import Path

import numpy as np
import pytest

from probes import (
    ActivationShapeError,
    Aggregator,
    Detector,
    ProjectionBank,
    fixed_thresholds,
    load_bundle,
    new_bundle,
    save_bundle,
    score,
)
from probes.arrays import Float32
from probes.contributions import MAX_CONTRIBUTIONS, contributions_of, top
from probes.detector import ActivationDetector, evidence_of, n_columns
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    detectors,
    floats,
    identity,
)

N_TOKENS = 7


@pytest.fixture(params=detectors(), ids=lambda detector: detector.name)
def detector(request: pytest.FixtureRequest) -> Detector:
    built: Detector = request.param
    return built


@pytest.fixture
def activations() -> dict[str, Float32]:
    return {
        HOOK_POINT: floats(N_TOKENS, D_MODEL, seed=20) * np.float32(3),
        LATER_HOOK_POINT: floats(N_TOKENS, D_MODEL, seed=21) * np.float32(3),
    }


def test_is_a_detector(detector: Detector) -> None:
    """
    Every family satisfies the protocols, by shape alone.
    """
    assert isinstance(detector, Detector)
    assert isinstance(detector.aggregator, Aggregator)


def test_evidence_is_finite_float32(
    detector: Detector, activations: dict[str, Float32]
) -> None:
    """
    Finite activations give one finite float32 row of evidence a token.
    """
    evidence = score(detector, activations)

    assert (N_TOKENS, detector.aggregator.n_columns) == evidence.shape
    assert np.float32 == evidence.dtype
    assert np.isfinite(evidence).all()


def test_scoring_is_pure(detector: Detector, activations: dict[str, Float32]) -> None:
    """
    Splitting a batch in two does not change the evidence, nor does scoring twice.
    """
    whole = score(detector, activations)
    halves = [
        score(detector, {hook: rows[part] for hook, rows in activations.items()})
        for part in (slice(0, 2), slice(2, None))
    ]

    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(score(detector, activations), whole)


def test_no_tokens_give_no_evidence(detector: Detector) -> None:
    """
    A batch without tokens is scored to evidence without rows.
    """
    empty = np.empty((0, D_MODEL), dtype=np.float32)

    evidence = score(detector, {HOOK_POINT: empty, LATER_HOOK_POINT: empty})

    assert (0, detector.aggregator.n_columns) == evidence.shape


def test_bank_gives_the_columns_that_a_direct_score_uses(
    detector: Detector, activations: dict[str, Float32]
) -> None:
    """
    Evidence from the bank of all detectors equals evidence straight from activations.
    """
    others = [other for other in detectors() if other.name != detector.name]
    bank = ProjectionBank.compile([*others, detector])
    columns, norms = bank.project(activations)

    found = bank.columns_of(detector.name, columns, norms)
    evidence = evidence_of(detector, found, activations)

    np.testing.assert_allclose(
        evidence, score(detector, activations), rtol=1e-5, atol=1e-5
    )


def test_huge_columns_give_finite_evidence(
    detector: Detector, activations: dict[str, Float32]
) -> None:
    """
    No finite column, however large, makes evidence infinite or NaN.
    """
    width = n_columns(detector.projections)
    columns = np.full((N_TOKENS, width), np.finfo(np.float32).max, dtype=np.float32)

    assert np.isfinite(evidence_of(detector, columns, activations)).all()


def test_parts_are_few_finite_and_shared(
    detector: Detector, activations: dict[str, Float32]
) -> None:
    """
    Of any one token there are at most five contributions, and their shares at most 1.
    """
    bank = ProjectionBank.compile([detector])
    for row in range(N_TOKENS):
        some = {h: rows[row : row + 1] for h, rows in activations.items()}
        own = bank.columns_of(detector.name, *bank.project(some))

        found = top(contributions_of(detector, own, some))

        assert len(found) <= MAX_CONTRIBUTIONS
        assert np.isfinite([one.value for one in found]).all()
        assert sum(one.share for one in found) <= 1 + 1e-6
        assert all(0 < len(one.name) <= 256 for one in found)


def test_nan_column_is_never_clean(detector: Detector) -> None:
    """
    A NaN column gives NaN evidence, which cannot be taken for a low score.
    """
    columns = np.full((1, n_columns(detector.projections)), np.nan, dtype=np.float32)
    nothing = np.full((1, D_MODEL), np.nan, dtype=np.float32)
    activations = {HOOK_POINT: nothing, LATER_HOOK_POINT: nothing}

    assert np.isnan(evidence_of(detector, columns, activations)).all()


def test_what_columns_do_not_decide_is_refused(detector: Detector) -> None:
    """
    A detector of whole activations gives no evidence from columns alone.
    """
    columns = np.zeros((2, n_columns(detector.projections)), dtype=np.float32)

    if not isinstance(detector, ActivationDetector):
        assert 2 == len(detector.head(columns))
        return
    with pytest.raises(ActivationShapeError, match="expects whole activations"):
        detector.head(columns)


@pytest.mark.parametrize(
    "columns",
    [
        np.zeros((3, 99), dtype=np.float32),
        np.zeros(3, dtype=np.float32),
    ],
)
def test_wrong_columns_are_refused(detector: Detector, columns: Float32) -> None:
    """
    Columns of another width or rank are refused, naming the detector.
    """
    with pytest.raises(ActivationShapeError, match=detector.name):
        detector.head(columns)


def test_float64_columns_are_refused(detector: Detector) -> None:
    """
    Columns of another dtype are refused, naming what came.
    """
    columns = np.zeros((2, n_columns(detector.projections)))

    with pytest.raises(ActivationShapeError, match="float64"):
        detector.head(columns)  # type: ignore[arg-type]


def test_missing_hook_point_is_refused(detector: Detector) -> None:
    """
    Activations that lack the detector's hook point are refused, naming it.
    """
    hook_point = detector.projections[0].hook_point

    with pytest.raises(ActivationShapeError, match=hook_point):
        score(detector, {})


def test_round_trip_through_a_bundle_is_bit_exact(
    detector: Detector, activations: dict[str, Float32], tmp_path: Path
) -> None:
    """
    A detector read back from disk gives the same evidence, to the last bit.
    """
    bundle = new_bundle(
        name="one",
        version="1",
        identity=identity(),
        detectors=[detector],
        calibration=fixed_thresholds({detector.name: 0.1}),
    )
    save_bundle(tmp_path / "bundle", bundle)

    loaded = load_bundle(tmp_path / "bundle").detectors[0]

    expected = score(detector, activations)
    np.testing.assert_array_equal(expected, score(loaded, activations))
    assert detector.aggregator == loaded.aggregator
