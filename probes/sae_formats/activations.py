"""What an SAE does to its input and its pre-activations, as pure functions."""

import numpy as np

from probes.arrays import FLOAT32_MAX, Float32, Float64


def normalise(activations: Float32, input_norm: str, eps: float) -> Float32:
    """
    Each row of *activations* (n_tokens, d_in), normalised as `SAE.input_norm` says.

    A row without spread (rms: of zeros) becomes zeros and not NaN.
    """
    if input_norm == "none":
        return activations
    shift, scale = moments(activations, input_norm, eps)
    with np.errstate(invalid="ignore", divide="ignore"):
        normed = np.where(scale == 0, 0.0, (activations - shift) / scale)
    return normed.astype(np.float32)


def activate(pre_activations: Float32, threshold: Float32 | None) -> Float32:
    """
    ReLU, or JumpReLU where there is a *threshold* of shape (n_features,).

    A NaN stays a NaN: it must not look like a feature that is off.
    """
    rectified = np.maximum(pre_activations, 0)
    if threshold is None:
        return rectified
    return np.where(pre_activations <= threshold, np.float32(0), rectified)


def gate(
    pre_activations: Float32, b_gate: Float32, r_mag: Float32, b_mag: Float32
) -> Float32:
    """Gated features, from one pre-activation each; arrays of shape (n_features,)."""
    with np.errstate(over="ignore"):
        gain = np.minimum(np.exp(r_mag), np.float32(FLOAT32_MAX))
        magnitudes = np.minimum(gain * pre_activations + b_mag, FLOAT32_MAX)
    is_off = pre_activations + b_gate <= 0
    rectified: Float32 = np.where(is_off, 0, np.maximum(magnitudes, 0))
    return rectified.astype(np.float32)


def keep_largest(
    pre_activations: Float32, k: int, rank_weight: Float32 | None, *, is_raw: bool
) -> Float32:
    """
    The k largest of each row, 0 elsewhere; a row with a NaN becomes NaN.

    Of equal ones the lower index is kept: libraries leave that open.
    """
    ranked = pre_activations if rank_weight is None else pre_activations * rank_weight
    kept = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(pre_activations, kept, axis=1)
    features = np.zeros_like(pre_activations)
    np.put_along_axis(features, kept, values if is_raw else np.maximum(values, 0), 1)
    features[np.isnan(pre_activations).any(axis=1)] = np.nan
    return features


def keep_group_maxima(pre_activations: Float32, n_groups: int) -> Float32:
    """The largest of each group of neighbours, rectified; 0 elsewhere, NaN by NaN."""
    rectified = np.maximum(pre_activations, 0)
    groups = rectified.reshape(len(rectified), n_groups, -1)
    best = groups.argmax(axis=2, keepdims=True)  # the first NaN, where there is one
    maxima = np.take_along_axis(groups, best, axis=2)
    features = np.where(np.isnan(maxima), maxima, np.float32(0))
    features = np.broadcast_to(features, groups.shape).copy()
    np.put_along_axis(features, best, maxima, axis=2)
    return features.reshape(rectified.shape)


def moments(
    activations: Float32, input_norm: str, eps: float
) -> tuple[Float64, Float64]:
    """What a row is shifted by and divided by, each (n_tokens, 1), float64."""
    rows = activations.astype(np.float64)
    n_tokens, d_in = rows.shape
    if input_norm == "none":
        return np.zeros((n_tokens, 1)), np.ones((n_tokens, 1))
    if input_norm == "rms":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.zeros((n_tokens, 1)), lengths / np.sqrt(d_in)
    mean = rows.mean(axis=1, keepdims=True)
    return mean, rows.std(axis=1, ddof=1, keepdims=True) + eps
