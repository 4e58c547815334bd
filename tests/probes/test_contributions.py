"""What a detector's parts said adds up to what the detector said."""

import numpy as np
import pytest

from probes.arrays import Float32
from probes.contributions import MAX_CONTRIBUTIONS, contributions_of, top
from probes.detector import Detector, n_columns, score
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    linear,
    mahalanobis,
    mlp,
    multilayer,
    sae,
    sae_features,
    topk_features,
)
from tests.probes.layer_builders import (
    cascade,
    ensemble,
    layer_delta,
    layer_directions,
)

_BOTH = (HOOK_POINT, LATER_HOOK_POINT)


def token(seed: int) -> dict[str, Float32]:
    """One token at two hook points."""
    scale = np.float32(3)
    return {h: floats(1, D_MODEL, seed=seed + i) * scale for i, h in enumerate(_BOTH)}


def said_of(detector: Detector, activations: dict[str, Float32]) -> dict[str, float]:
    """What the parts of *detector* say of a token."""
    columns = [
        activations[p.hook_point] @ p.weight.T + p.bias for p in detector.projections
    ]
    joined = np.concatenate(columns, axis=1)
    return dict(contributions_of(detector, joined, activations))


@pytest.mark.parametrize(
    ("detector", "bias"),
    [
        (linear(), 0.0),
        (multilayer(), 0.75),
        (ensemble("mean"), 0.0),
        (ensemble("max"), 0.0),
        (ensemble("logistic"), 0.5),
        (sae_features("relu"), 0.0),
        (sae_features("gated"), 0.0),
        (topk_features("weighted_sum"), 0.0),
        (layer_delta(), 0.0),
        (layer_directions(), 0.0),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_parts_and_bias_are_the_evidence(detector: Detector, bias: float) -> None:
    """
    Where parts are summed, their sum and the bias are the token's evidence.
    """
    for seed in range(80, 90):
        activations = token(seed)
        expected = score(detector, activations)[0, 0]

        found = sum(said_of(detector, activations).values()) + bias

        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_are_named_by_their_hook_points() -> None:
    """
    A probe over layers names each, a plain one the layer that it reads.
    """
    assert list(_BOTH) == list(said_of(multilayer(), token(80)))
    assert [HOOK_POINT] == list(said_of(linear(), token(80)))
    members = [f"{HOOK_POINT}, member 0", LATER_HOOK_POINT, f"{HOOK_POINT}, member 2"]
    assert members == list(said_of(ensemble(), token(80)))


@pytest.mark.parametrize("rule", ["any", "count"])
def test_a_rule_names_the_features_that_are_above_their_levels(rule: str) -> None:
    """
    Features that fired are there with how far they are above their level; no others.
    """
    detector = sae_features("relu", rule)
    levels = {7: 0.5, 3: 0.0, 40: 1.0}
    n_found = 0
    for seed in range(80, 110):
        activations = token(seed)
        features = sae("relu").encode(activations[LATER_HOOK_POINT])[0]
        above = {
            f"feature {i}": features[i] - level
            for i, level in levels.items()
            if features[i] > level
        }

        found = said_of(detector, activations)

        assert above.keys() == found.keys()
        np.testing.assert_allclose(
            [found[name] for name in above], list(above.values()), rtol=1e-4, atol=1e-4
        )
        n_found += len(found)
    assert n_found


def test_a_cascade_tells_of_the_stage_that_decided() -> None:
    """
    Parts of the second stage where it was asked, behind its name; else none.
    """
    second = multilayer()
    asked = said_of(cascade(linear(), second, level=-1e9), token(80))
    let_through = said_of(cascade(linear(), second, level=1e9), token(80))

    assert {f"multilayer: {h}" for h in _BOTH} == asked.keys()
    assert {} == let_through


@pytest.mark.parametrize("detector", [mlp(), cascade(linear(), mlp(), level=-1e9)])
def test_what_is_one_layer_is_one_part(detector: Detector) -> None:
    """
    Of a nonlinear detector at one hook point, that hook point said it all.
    """
    activations = token(80)

    ((name, value),) = said_of(detector, activations).items()

    assert name.endswith(HOOK_POINT)
    assert value == pytest.approx(score(mlp(), activations)[0, 0])


class TestTop:
    def test_the_largest_come_first_whatever_their_sign(self) -> None:
        """
        Shares are of all parts, those that are left out too.
        """
        found = top({f"f{i}": float(i) * (-1) ** i for i in range(10)})

        assert MAX_CONTRIBUTIONS == len(found)
        assert ["f9", "f8", "f7", "f6", "f5"] == [one.name for one in found]
        assert [-9.0, 8.0] == [one.value for one in found[:2]]
        assert 35 / 45 == pytest.approx(sum(one.share for one in found))

    def test_nothing_said_is_no_part(self) -> None:
        """
        Parts that said 0 are left out, and of none at all there is nothing.
        """
        assert () == top({})
        assert () == top({"a": 0.0})
        assert ["b"] == [one.name for one in top({"a": 0.0, "b": 1.0})]

    def test_no_sum_overflows(self) -> None:
        """
        The largest numbers have shares too.
        """
        found = top(dict.fromkeys("abc", 1e308))

        assert [1 / 3] * 3 == pytest.approx([one.share for one in found])


def test_a_detector_of_columns_with_a_norm_is_one_part() -> None:
    """
    Distances name their layer.
    """
    detector = mahalanobis(rank=4)
    columns = np.ones((1, n_columns(detector.projections)), dtype=np.float32)

    found = contributions_of(detector, columns, {})

    assert [HOOK_POINT] == list(found)
