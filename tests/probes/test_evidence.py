"""The evidence of many detectors at once."""

import numpy as np
import pytest

from probes import Detector, ProjectionBank
from probes.arrays import Float32
from probes.detector import evidence_of
from probes.evidence import Evidence, Scorer
from probes.linear import LinearProbe
from probes.sae import SAEFeatureDetector
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    detectors,
    floats,
    linear,
    sae_features,
)

RULES = ("weighted_sum", "any", "all", "count")


def many() -> list[Detector]:
    """Every family, and several of those that are evaluated together."""
    found: list[Detector] = [*detectors(), linear("l1"), linear("l2")]
    for i, rule in enumerate(RULES * 2):
        one = sae_features(rule=rule)
        values = {
            name: getattr(one, name)
            for name in one.__dataclass_fields__
            if one.__dataclass_fields__[name].init
        }
        found.append(SAEFeatureDetector(**values | {"name": f"more-{i}"}))
    return found


@pytest.fixture
def activations() -> dict[str, Float32]:
    bank = ProjectionBank.compile(many())
    return {
        h: floats(40, D_MODEL, seed=i) * np.float32(3)
        for i, h in enumerate(bank.hook_points)
    }


def test_together_is_as_alone(activations: dict[str, Float32]) -> None:
    """
    A detector's evidence is to the last bit what its own head gives.
    """
    found = many()
    bank = ProjectionBank.compile(found)
    columns, norms = bank.project(activations)

    together = Scorer(bank, found).evidence(columns, norms, activations)

    each = [
        evidence_of(d, bank.columns_of(d.name, columns, norms), activations)
        for d in found
    ]
    alone = Evidence.of(found, each)
    np.testing.assert_array_equal(alone.scores, together.scores)
    assert alone.wide.keys() == together.wide.keys()
    for index, wide in alone.wide.items():
        np.testing.assert_array_equal(wide, together.wide[index])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_is_seen(activations: dict[str, Float32], bad: float) -> None:
    """
    A token of which one detector has no finite evidence is not finite.
    """
    found = many()
    bank = ProjectionBank.compile(found)
    evidence = Scorer(bank, found).evidence(*bank.project(activations), activations)
    assert evidence.is_finite().all()

    evidence.scores[3, 7] = bad
    assert [7] == np.flatnonzero(~evidence.is_finite()).tolist()
    index, wide = next(iter(evidence.wide.items()))
    wide[9, -1] = bad
    assert [7, 9] == np.flatnonzero(~evidence.is_finite()).tolist()
    assert index in evidence.rows(np.array([1, 9])).wide


def test_the_largest_numbers_are_finite() -> None:
    """
    Evidence at the limits of float32 under many detectors is finite.
    """
    largest = np.finfo(np.float32).max
    scores = np.full((64, 2), largest, dtype=np.float32)

    assert Evidence(scores, {}).is_finite().all()


def test_linear_probes_alone_need_no_head() -> None:
    """
    With nothing but linear probes the evidence is the bank's columns.
    """
    found = [linear(f"p{i}") for i in range(3)]
    assert all(isinstance(d, LinearProbe) for d in found)
    bank = ProjectionBank.compile(found)
    columns, norms = bank.project({HOOK_POINT: floats(5, D_MODEL)})

    evidence = Scorer(bank, found).evidence(columns, norms, {})

    np.testing.assert_array_equal(columns[HOOK_POINT].T, evidence.scores)
