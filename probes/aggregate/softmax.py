"""
The online softmax: a weighted mean over tokens without keeping the tokens.

A state holds, a head, the highest logit m, sum e^(q - m) v and sum e^(q - m)
(Milakov and Gimelshein 2018, arXiv 1805.02867).
"""

import math

import numpy as np

from probes.aggregate.segments import Segments
from probes.arrays import Float64


def start(n_requests: int, n_heads: int) -> Float64:
    """State of shape (n_requests, 3 * n_heads) before any token."""
    one = [-np.inf] * n_heads + [0.0] * (2 * n_heads)
    return np.tile(one, (n_requests, 1))


def add_weighted(
    state: Float64, segments: Segments, logits: Float64, values: Float64
) -> Float64:
    """Return *state* after *values* weighted by *logits*, both (n_tokens, n_heads)."""
    new = state.copy()
    if not segments:
        return new
    n_heads = logits.shape[1]
    old = state[segments.active]
    highest = np.maximum(old[:, :n_heads], segments.maxima(logits))
    faded = np.exp(old[:, :n_heads] - highest)
    weights = np.exp(logits - segments.spread(highest))
    sums = old[:, n_heads : 2 * n_heads] * faded + segments.sums(weights * values)
    totals = old[:, 2 * n_heads :] * faded + segments.sums(weights)
    new[segments.active] = np.hstack([highest, sums, totals])
    return new


def weighted_mean(state: Float64) -> Float64:
    """Sum over heads of the weighted means, (n_requests,); -inf before any token."""
    n_heads = state.shape[1] // 3
    sums, totals = state[:, n_heads : 2 * n_heads], state[:, 2 * n_heads :]
    has_tokens = totals[:, 0] > 0
    means = sums / np.where(totals > 0, totals, 1)
    return np.where(has_tokens, means.sum(axis=1), -np.inf)


def plain_mean(logits: Float64, values: Float64) -> float:
    """The weighted mean of one head over all tokens, (n_tokens,): the plain twin."""
    if not len(logits):
        return -math.inf
    highest = max(logits.tolist())
    weights = [math.exp(q - highest) for q in logits.tolist()]
    pairs = zip(weights, values.tolist(), strict=True)
    return math.fsum(w * v for w, v in pairs) / math.fsum(weights)
