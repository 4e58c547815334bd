"""Rules over a few features give what the full encoder gives, whatever the SAE."""

from typing import Any

import numpy as np
import pytest

from probes import ActivationShapeError, Max, SAEFeatureDetector, score
from probes.arrays import Float32
from probes.reconstruction import SAEReconstruction
from probes.rules import RULES
from probes.sae_formats.record import SAE
from probes.topk import TopKFeatureDetector
from tests.bench.sae_rules import KINDS, compare, random_sae
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    crosscoder,
    floats,
    sae,
)

FEATURES, WEIGHTS, LEVELS = [7, 3, 40], [1.0, 0.5, -2.0], [0.5, 0.0, 1.0]
SUBSETS: dict[str, SAE] = {
    "relu": sae("relu"),
    "jumprelu": sae("jumprelu"),
    "gated": sae("gated"),
    "groupmax": sae("groupmax", k=30),
    "relu, rms": sae("relu", input_norm="rms"),
    "gated, layer_norm": sae("gated", input_norm="layer_norm", norm_eps=1e-5),
    "crosscoder": crosscoder(),
}
COMPETING: dict[str, SAE] = {
    "topk": sae("topk", k=25),
    "topk, raw": sae("topk", is_raw=True, k=50),
    "topk, weighted": sae("topk", k=25, rank_weight=np.exp(floats(60, seed=39))),
    "topk, layer_norm": sae("topk", k=25, input_norm="layer_norm", norm_eps=1e-5),
}


def activations(n_tokens: int = 3000) -> dict[str, Float32]:
    """Activations whose mean is far from zero, as a residual stream's are."""
    return {
        HOOK_POINT: floats(n_tokens, D_MODEL, seed=41) + np.float32(0.5),
        LATER_HOOK_POINT: floats(n_tokens, D_MODEL, seed=42) + np.float32(0.5),
    }


def plain(one: SAE, rule: str, x: dict[str, Float32]) -> list[float]:
    """The rule on the full encoder's features, token by token."""
    rows = np.concatenate([x[h] for h in one.hook_points], axis=1)
    found = []
    for features in one.encode(rows)[:, FEATURES].tolist():
        excess = [f - t for f, t in zip(features, LEVELS, strict=True)]
        match rule:
            case "weighted_sum":
                pairs = zip(features, WEIGHTS, strict=True)
                found.append(sum(f * w for f, w in pairs))
            case "any":
                found.append(max(0.0, *excess))
            case "all":
                found.append(max(0.0, min(excess)))
            case "count":
                found.append(float(sum(e > 0 for e in excess)))
    return found


def watching(cls: Any, one: SAE, rule: str) -> Any:
    return cls.from_sae(
        one,
        name="few",
        features=FEATURES,
        rule=rule,
        feature_weights=WEIGHTS,
        levels=LEVELS,
        aggregator=Max(),
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one", SUBSETS.values(), ids=SUBSETS)
def test_a_subset_gives_what_the_encoder_gives(one: SAE, rule: str) -> None:
    """
    A rule on the watched rows equals the rule on the full encoding, on each token.
    """
    x = activations()

    evidence = score(watching(SAEFeatureDetector, one, rule), x)[:, 0]

    expected = plain(one, rule, x)
    np.testing.assert_allclose(evidence, expected, rtol=1e-4, atol=2e-4)
    assert 0 < np.count_nonzero(expected) < len(expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one", COMPETING.values(), ids=COMPETING)
def test_topk_gives_what_the_encoder_gives(one: SAE, rule: str) -> None:
    """
    A rule on features that compete with all others is the full encoder's, exactly.
    """
    x = activations()

    evidence = score(watching(TopKFeatureDetector, one, rule), x)[:, 0]

    np.testing.assert_allclose(evidence, plain(one, rule, x), rtol=1e-6, atol=1e-6)
    assert evidence.any()


def test_topk_keeps_most_tokens_from_the_encoder() -> None:
    """
    Only tokens whose own rows could hold the rule are encoded in full.
    """
    x = activations()
    detector = TopKFeatureDetector.from_sae(
        sae("topk"), name="few", features=[7], levels=[6.0], aggregator=Max()
    )
    columns = x[LATER_HOOK_POINT] @ detector.projections[0].weight.T

    may_hold = detector.may_hold(columns, x[LATER_HOOK_POINT])

    holds = score(detector, x)[:, 0] > 0
    assert may_hold[holds].all()
    assert 0 < holds.sum() <= may_hold.sum() < len(holds) / 5


def test_a_bare_relu_would_fire_too_often() -> None:
    """
    Watching a TopK SAE's rows without the others is refused, saying why.
    """
    with pytest.raises(ValueError, match="among the k largest of all"):
        watching(SAEFeatureDetector, sae("topk"), "any")


def test_topk_without_activations_is_refused() -> None:
    """
    Columns do not decide which features of a TopK SAE are on, and are not guessed from.
    """
    detector = watching(TopKFeatureDetector, sae("topk"), "any")

    with pytest.raises(ActivationShapeError, match="columns alone do not say"):
        detector.head(np.zeros((1, 3), dtype=np.float32))


def test_reconstruction_error_is_the_formula() -> None:
    """
    Evidence is the squared length of what is missing, over that of the activation.
    """
    one = sae("relu", b_enc=floats(60, seed=43))
    x = activations(50)
    detector = SAEReconstruction(name="error", sae=one, aggregator=Max())

    evidence = score(detector, x)[:, 0]

    rows = x[LATER_HOOK_POINT].astype(np.float64)
    assert one.W_dec is not None
    assert one.b_dec is not None
    again = np.maximum(rows @ one.W_enc + one.b_enc, 0) @ one.W_dec + one.b_dec
    expected = ((rows - again) ** 2).sum(axis=1) / (rows**2).sum(axis=1)
    np.testing.assert_allclose(evidence, expected, rtol=1e-4)


def test_reconstruction_needs_a_decoder() -> None:
    """
    An SAE without a decoder of what it reads cannot be asked how well it does.
    """
    with pytest.raises(ValueError, match="expected one with a decoder"):
        SAEReconstruction(name="error", sae=crosscoder(), aggregator=Max())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_bench_finds_no_wrong_outcome(kind: dict[str, Any]) -> None:
    """
    The bench's short form: rules over a few features of random SAEs are never wrong.
    """
    lines = compare(random_sae(32, 256, **kind), 16, 2000)

    assert len(RULES) == len(lines)
    assert all(" 0 of 2000 outcomes wrong" in line for line in lines), lines


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rule": "most"}, "rule: expected one of"),
        ({"levels": [-1.0, 0.0, 0.0]}, "levels: expected numbers of at least 0"),
        ({"levels": [1.0]}, r"levels: expected \(3,\)"),
        ({"feature_weights": [1.0]}, r"feature_weights: expected \(3,\)"),
        ({"features": [60]}, "from 0 to 59"),
    ],
)
@pytest.mark.parametrize("cls", [SAEFeatureDetector, TopKFeatureDetector])
def test_impossible_rules_are_refused(
    cls: Any, changes: dict[str, Any], match: str
) -> None:
    """
    A rule that cannot be is refused when it is made, naming what is wrong.
    """
    one = sae("topk" if cls is TopKFeatureDetector else "relu")
    fields: dict[str, Any] = {"features": FEATURES, "aggregator": Max()} | changes

    with pytest.raises(ValueError, match=match):
        cls.from_sae(one, name="few", **fields)
