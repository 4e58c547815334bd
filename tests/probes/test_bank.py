"""The projection bank."""

import numpy as np
import pytest

from probes import (
    ActivationShapeError,
    ArtifactError,
    LinearProbe,
    Max,
    ProjectionBank,
)
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    detectors,
    floats,
    linear,
    mahalanobis,
)


def test_hook_points_are_sorted_by_layer() -> None:
    """
    Layer 10 comes after layer 1 and 2, as numbers and not as text.
    """
    middle = linear("middle", "blocks.2.hook_resid_post")

    bank = ProjectionBank.compile([*reversed(detectors()), middle])

    assert (HOOK_POINT, middle.hook_point, LATER_HOOK_POINT) == bank.hook_points


def test_shapes_fit_the_columns() -> None:
    """
    A hook point's matrix has the rows of its detectors, norms not counted.
    """
    bank = ProjectionBank.compile(detectors())
    placed = [p for d in detectors() for p in d.projections]
    n_rows = sum(len(p.weight) for p in placed if p.hook_point == HOOK_POINT)

    assert n_rows == bank.n_columns(HOOK_POINT)
    assert (n_rows, D_MODEL) == bank.weights[HOOK_POINT].shape
    assert (n_rows,) == bank.biases[HOOK_POINT].shape


def test_digest_is_the_same_for_the_same_detectors() -> None:
    """
    Two banks of the same detectors have one digest.
    """
    first, second = (ProjectionBank.compile(detectors()) for _ in range(2))

    assert first.digest == second.digest
    assert 64 == len(first.digest)


@pytest.mark.parametrize("what", ["weight", "bias", "hook_point"])
def test_digest_changes_with_what_it_binds(what: str) -> None:
    """
    Another weight, bias or hook point is another digest.
    """
    probe = linear()
    changed = LinearProbe(
        name=probe.name,
        hook_point=LATER_HOOK_POINT if what == "hook_point" else probe.hook_point,
        weight=probe.weight * np.float32(2 if what == "weight" else 1),
        bias=probe.bias + (what == "bias"),
        aggregator=Max(),
    )

    digests = {ProjectionBank.compile([p]).digest for p in (probe, changed)}

    assert 2 == len(digests)


def test_duplicate_names_are_refused() -> None:
    """
    Two detectors of one name could not be told apart, and are refused.
    """
    with pytest.raises(ArtifactError, match="'linear' twice"):
        ProjectionBank.compile([linear(), linear()])


def test_different_widths_are_refused() -> None:
    """
    Two detectors for models of different width cannot share a hook point.
    """
    with pytest.raises(ArtifactError, match="expected d_model 12, got 16"):
        ProjectionBank.compile([linear(), mahalanobis(d_model=16)])


def test_no_detectors_are_refused() -> None:
    """
    A bank of nothing would watch nothing, and is refused.
    """
    with pytest.raises(ArtifactError, match="at least one"):
        ProjectionBank.compile([])


def test_missing_norms_are_refused() -> None:
    """
    A detector that needs |x|^2 is not scored without it.
    """
    detector = mahalanobis()
    bank = ProjectionBank.compile([detector])
    columns, _ = bank.project({HOOK_POINT: floats(3, D_MODEL)})

    with pytest.raises(ActivationShapeError, match="rows"):
        bank.columns_of(detector.name, columns, {})


def test_unknown_detector_is_a_key_error() -> None:
    """
    Asking for a detector that was not compiled raises KeyError.
    """
    bank = ProjectionBank.compile([linear()])

    with pytest.raises(KeyError):
        bank.columns_of("other", {}, {})
