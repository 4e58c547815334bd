"""Cascades: what the second stage is asked, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from probes import (
    Aggregator,
    ArtifactError,
    Detector,
    Max,
    Projection,
    fixed_thresholds,
    load_bundle,
    new_bundle,
    save_bundle,
    score,
)
from probes.arrays import Float32
from probes.cascade import ActivationCascade, Cascade
from probes.codec import pack, unpack
from probes.detector import ActivationDetector
from probes.fields import dump_json, json_fields
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    attention,
    bilinear,
    floats,
    identity,
    linear,
    mahalanobis,
    mlp,
    nearest,
    relative,
    sae_features,
    topk_features,
)
from tests.probes.layer_builders import cascade, layer_delta


@dataclass(kw_only=True)
class Counting:
    """A detector that counts the rows that its head is given."""

    inner: Detector
    rows: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.inner.projections

    @property
    def aggregator(self) -> Aggregator:
        return self.inner.aggregator

    def head(self, columns: Float32) -> Float32:
        self.rows.append(len(columns))
        return self.inner.head(columns)


@dataclass(kw_only=True)
class CountingActivations(Counting):
    """The same, of whole activations."""

    def head_on_activations(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Float32:
        assert isinstance(self.inner, ActivationDetector)
        assert {len(columns)} == {len(rows) for rows in activations.values()}
        self.rows.append(len(columns))
        return self.inner.head_on_activations(columns, activations)


@pytest.fixture
def activations() -> dict[str, Float32]:
    return {
        HOOK_POINT: floats(500, D_MODEL, seed=90) * np.float32(2),
        LATER_HOOK_POINT: floats(500, D_MODEL, seed=91) * np.float32(2),
    }


@pytest.mark.parametrize(
    "second",
    [
        mlp(),
        mahalanobis(rank=4),
        relative(),
        nearest(is_normalised=True),
        sae_features(),
        bilinear(),
    ],
    ids=lambda detector: detector.name,
)
def test_evidence_is_the_second_stages_above_the_level(
    second: Detector, activations: dict[str, Float32]
) -> None:
    """
    A token has the second stage's evidence above the level, at least the floor, and
    the floor at or below it.
    """
    detector = cascade(linear(), second, level=1.0)

    evidence = score(detector, activations)

    judged = score(detector.first, activations)
    expected = np.where(
        judged > 1.0, np.maximum(score(second, activations), -1.5), np.float32(-1.5)
    )
    np.testing.assert_allclose(evidence, expected, rtol=1e-5, atol=1e-5)
    assert 0 < (judged > 1.0).sum() < len(judged)


def test_the_second_head_is_given_no_other_row(
    activations: dict[str, Float32],
) -> None:
    """
    The second head sees as many rows as are above the level, and is else not called.
    """
    second = Counting(inner=mlp())
    detector = cascade(linear(), second, level=1.0)
    n_above = int((score(detector.first, activations) > 1.0).sum())

    score(detector, activations)
    score(replace(detector, level=1e30), activations)

    assert [n_above] == second.rows


@pytest.mark.parametrize(
    "inner", [topk_features(), layer_delta()], ids=lambda detector: detector.name
)
def test_whole_activations_are_of_the_same_rows(
    inner: Detector, activations: dict[str, Float32]
) -> None:
    """
    A second stage of whole activations is given those of its tokens alone.
    """
    second = CountingActivations(inner=inner)
    detector = cascade(linear(), second, floor=0.0)
    is_above = score(detector.first, activations)[:, 0] > 0

    evidence = score(detector, activations)

    assert [is_above.sum()] == second.rows
    whole = np.maximum(score(inner, activations), 0)
    np.testing.assert_allclose(evidence[is_above], whole[is_above], rtol=1e-4)
    assert not evidence[~is_above].any()


def test_a_token_at_the_level_is_let_through() -> None:
    """
    The level is crossed strictly, as a threshold is.
    """
    detector = cascade(linear(), mlp(), level=2.0)
    columns = np.array([[2.0], [np.nextafter(np.float32(2), 3)]], dtype=np.float32)
    second = np.full((2, 5), 1, dtype=np.float32)

    evidence = detector.head(np.hstack([columns, second]))[:, 0]

    expected = max(detector.second.head(second)[1, 0], -1.5)
    assert [np.float32(-1.5), expected] == evidence.tolist()


def test_a_nan_of_either_stage_is_no_floor() -> None:
    """
    A token that the first stage lets through is NaN where the second's columns are.
    """
    detector = cascade(linear(), mlp())
    columns = np.full((3, 6), -1, dtype=np.float32)
    columns[0, 0] = np.nan
    columns[1, 3] = np.nan

    evidence = detector.head(columns)[:, 0]

    assert [True, True, False] == np.isnan(evidence).tolist()


@pytest.mark.parametrize(
    ("family", "stages", "match"),
    [
        (Cascade, (linear(), attention()), "second: expected a detector of one column"),
        (Cascade, (attention(), linear()), "first: expected a detector of one column"),
        (Cascade, (linear(), topk_features()), r"\['topk-any'\] of whole activations"),
        (ActivationCascade, (linear(), mlp()), "expected a stage that reads whole"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    family: type[Cascade], stages: tuple[Detector, Detector], match: str
) -> None:
    """
    Stages of several columns, or of whole activations where columns are, are refused.
    """
    with pytest.raises(ValueError, match=match):
        family(
            name="c",
            first=stages[0],
            second=stages[1],
            level=0.0,
            floor=0.0,
            aggregator=Max(),
        )


def test_three_stages_are_a_cascade_in_a_cascade(
    activations: dict[str, Float32], tmp_path: Path
) -> None:
    """
    A stage may be a cascade, and is read back from disk as one.
    """
    inner = cascade(mahalanobis(rank=4), mlp(), level=5.0)
    detector = cascade(linear(), inner, level=1.0)
    bundle = new_bundle(
        name="three",
        version="1",
        identity=identity(),
        detectors=[detector],
        calibration=fixed_thresholds({detector.name: 0.1}),
    )
    save_bundle(tmp_path / "bundle", bundle)

    loaded = load_bundle(tmp_path / "bundle").detectors[0]

    expected = score(detector, activations)
    np.testing.assert_array_equal(expected, score(loaded, activations))


def nested(depth: int) -> Cascade:
    made = cascade(linear(), mlp())
    for _ in range(depth):
        made = cascade(linear(), made)
    return made


def test_stages_without_end_are_refused() -> None:
    """
    More detectors within each other than are sensible are neither written nor read.
    """
    table, arrays = pack(nested(3))
    for _ in range(300):
        table = table | {"second": table}

    with pytest.raises(ArtifactError, match="at most 4 detectors around it"):
        pack(nested(4))
    with pytest.raises(ArtifactError, match="at most 4 detectors around it") as caught:
        unpack(json_fields("bundle.json", dump_json(table)), arrays)
    assert "\n" not in str(caught.value)
