"""Nonlinear and multi-layer probes against plain loops over a whole request."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest

from probes import AttentionProbe, MultiMaxProbe, RollingAttentionMax, score
from probes.arrays import Float32
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    attention,
    floats,
    linear,
    mlp,
    multi_max,
    multilayer,
)

X = floats(23, D_MODEL, seed=60)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def layer(weight: Float32, bias: Float32, x: list[float]) -> list[float]:
    """ReLU(W x + b), number by number."""
    rows = zip(weight.tolist(), bias.tolist(), strict=True)
    return [max(0.0, dot(row, x) + b) for row, b in rows]


def hidden_of(probe: AttentionProbe | MultiMaxProbe) -> list[list[float]]:
    """What the second layer of *probe* gives for each token of `X`."""
    first = [layer(probe.weight, probe.bias, x) for x in X.tolist()]
    return [layer(probe.hidden_weights[0], probe.hidden_biases[0], y) for y in first]


def attend(probe: AttentionProbe, ys: list[list[float]], head: int) -> float:
    """One head's mean value over the tokens *ys*, weighted by softmax."""
    weights = [exp(dot(probe.queries[head].tolist(), y)) for y in ys]
    values = [
        dot(probe.values[head].tolist(), y) + float(probe.value_biases[head])
        for y in ys
    ]
    return dot(weights, values) / sum(weights)


def test_mlp_equals_a_plain_loop() -> None:
    """
    Each token's logit is the network's, written out layer by layer.
    """
    probe = mlp(n_hidden=2)
    expected = []
    for x in X.tolist():
        y = layer(probe.weight, probe.bias, x)
        for weight, bias in zip(probe.hidden_weights, probe.hidden_biases, strict=True):
            y = layer(weight, bias, y)
        expected.append(dot(probe.out_weight.tolist(), y) + probe.out_bias)

    logits = score(probe, {HOOK_POINT: X})[:, 0]

    np.testing.assert_allclose(expected, logits, rtol=1e-5, atol=1e-5)


def test_attention_equals_a_plain_loop() -> None:
    """
    The statistic is sum_h of a softmax-weighted mean over the whole request.
    """
    probe = attention()
    ys = hidden_of(probe)
    expected = sum(attend(probe, ys, head) for head in range(3))

    statistic = probe.aggregator.aggregate(score(probe, {LATER_HOOK_POINT: X}))

    assert statistic == pytest.approx(expected, rel=1e-5)


def test_rolling_attention_equals_a_plain_loop() -> None:
    """
    The statistic is sum_h of the highest attention over any window of ten tokens.
    """
    probe = attention(RollingAttentionMax(n_heads=3, window=10))
    ys = hidden_of(probe)
    expected = sum(
        max(attend(probe, ys[max(0, end - 10) : end], head) for end in range(1, 24))
        for head in range(3)
    )

    statistic = probe.aggregator.aggregate(score(probe, {LATER_HOOK_POINT: X}))

    assert statistic == pytest.approx(expected, rel=1e-5)


def test_multi_max_equals_a_plain_loop() -> None:
    """
    The statistic is sum_h of the highest value of any token.
    """
    probe = multi_max()
    ys = hidden_of(probe)
    expected = sum(
        max(dot(value, y) for y in ys) + bias
        for value, bias in zip(
            probe.values.tolist(), probe.value_biases.tolist(), strict=True
        )
    )

    statistic = probe.aggregator.aggregate(score(probe, {HOOK_POINT: X}))

    assert statistic == pytest.approx(expected, rel=1e-5)


def test_multilayer_is_one_direction_in_the_concatenation() -> None:
    """
    The sum over hook points is the dot product with all their activations, end to end.
    """
    probe, later = multilayer(), floats(23, D_MODEL, seed=61)
    expected = np.hstack([X, later]) @ probe.weights.ravel() + probe.bias

    evidence = score(probe, {HOOK_POINT: X, LATER_HOOK_POINT: later})

    np.testing.assert_allclose(expected, evidence[:, 0], rtol=1e-5, atol=1e-5)


def test_huge_weights_stay_finite() -> None:
    """
    Many layers at float32's limit give finite evidence for finite columns.
    """
    most = np.finfo(np.float32).max
    probe = mlp(n_hidden=1)
    row = np.array([most, -most, most, -most, 0], np.float32)
    weights = np.tile(row, (12, 5, 1))
    loud = replace(
        probe, hidden_weights=weights, hidden_biases=np.full((12, 5), -most, np.float32)
    )
    columns = np.array([[most] * 5, [-most] * 5, [most, -most, 0, 1, 2]], np.float32)

    assert np.isfinite(loud.head(columns)).all()


def test_mismatched_layers_are_refused() -> None:
    """
    Layers that do not fit each other are refused, naming probe and field.
    """
    with pytest.raises(ValueError, match=r"'multi-max': values: .*'?n_heads'?, 5"):
        replace(multi_max(), values=floats(3, 6))
    with pytest.raises(ValueError, match="'mlp-1': hidden_biases"):
        replace(mlp(), hidden_biases=floats(2, 5))
    with pytest.raises(ValueError, match="aggregator: expected one for 6 columns"):
        replace(attention(), aggregator=linear().aggregator)
    with pytest.raises(ValueError, match="hook_points: expected different ones"):
        replace(multilayer(), hook_points=(HOOK_POINT, HOOK_POINT))
