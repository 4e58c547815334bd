"""A few ReLU layers behind a projection: what the nonlinear probes share."""

import numpy as np

from probes.arrays import FLOAT32_MAX, Float32, Float64, check_array
from probes.detector import Projection


def check_layers(
    what: str, weight: Float32, bias: Float32, weights: Float32, biases: Float32
) -> int:
    """
    Raise `ValueError` unless the layers fit each other; return their width.

    Args:
        what: Names the probe in the message.

        weight: First layer of shape (width, d_model), float32.

        bias: Of the first layer, (width,), float32.

        weights: The layers behind it, (n_layers, width, width), float32.

        biases: Of these, (n_layers, width), float32.
    """
    check_array(f"{what}: weight", weight, ("width", "d_model"))
    width = len(weight)
    check_array(f"{what}: bias", bias, (width,))
    check_array(f"{what}: hidden_weights", weights, ("n_layers", width, width))
    check_array(f"{what}: hidden_biases", biases, (len(weights), width))
    return width


def first_layer(hook_point: str, weight: Float32, bias: Float32) -> Projection:
    """The layer that is linear in the activation, as a projection."""
    return Projection(hook_point=hook_point, weight=weight, bias=bias)


def last_hidden(columns: Float32, weights: Float32, biases: Float32) -> Float64:
    """
    What the last ReLU lets through, from the columns of the first layer.

    In float64, and kept within float32 after each layer, so that no finite column
    becomes infinite behind any number of layers.

    Args:
        columns: Of shape (n_tokens, width), float32, before their ReLU.

        weights: Of shape (n_layers, width, width), float32.

        biases: Of shape (n_layers, width), float32.

    Returns:
        Of shape (n_tokens, width), float64, in [0, `FLOAT32_MAX`] or NaN.
    """
    hidden = np.maximum(columns.astype(np.float64), 0)
    for weight, bias in zip(weights, biases, strict=True):
        hidden = np.clip(hidden @ weight.T.astype(np.float64) + bias, 0, FLOAT32_MAX)
    return hidden


def as_evidence(values: Float64) -> Float32:
    """*values* of shape (n_tokens, m) as float32, none of them infinite."""
    evidence: Float32 = np.clip(values, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    return evidence
