"""Squared distances from columns, without losing them to cancellation."""

import numpy as np

from probes.arrays import Float64

N_MEAN_PARTS = 4


def mean_rows(mean: Float64) -> Float64:
    """
    Projection rows of shape (4, d_model) whose columns add up to mean . x.

    |x - m|^2 is |x|^2 - 2 m.x + |m|^2, which cancels. So m.x comes in four columns,
    one a quarter of m: a float32 matrix product adds up one column's terms in a row,
    and its error grows with what it has added up already.
    """
    part_of = np.arange(len(mean)) * N_MEAN_PARTS // len(mean)
    return np.where(part_of == np.arange(N_MEAN_PARTS)[:, None], mean, 0.0)


def squared_distance_to_mean(
    mean_columns: Float64, squared_norm: Float64, mean: Float64
) -> Float64:
    """
    |x - mean|^2 of each token, (n_tokens,); may be below 0 by rounding.

    Args:
        mean_columns: Columns of `mean_rows`, (n_tokens, 4).

        squared_norm: |x|^2 of shape (n_tokens,).

        mean: Of shape (d_model,).
    """
    distance: Float64 = squared_norm - 2 * mean_columns.sum(axis=1) + mean @ mean
    return distance
