"""What readers fold into an encoder, summed in float64 and rounded once."""

import numpy as np

from probes.arrays import Float32, Float64

# Rows that are in float64 at a time: 128 rows of 131072 features are 128 MiB.
_ROWS = 128


def unshifted(b_enc: Float32, weight: Float32, shift: Float32) -> Float32:
    """
    The bias b' with ``x W + b' = (x - shift) W + b``, of shape (d_sae,).

    Args:
        b_enc: b, of shape (d_sae,).

        weight: W, of shape (d_in, d_sae).

        shift: Of shape (d_in,); the decoder's bias, where an SAE subtracts it.
    """
    total: Float64 = b_enc.astype(np.float64)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        total -= shift[rows].astype(np.float64) @ weight[rows].astype(np.float64)
    return total.astype(np.float32)


def scaled(numbers: Float32, factor: float | Float64) -> Float32:
    """*numbers* times *factor*, which may be one for each column."""
    product = np.empty_like(numbers)
    np.multiply(numbers, factor, out=product, dtype=np.float64, casting="same_kind")
    return product


def row_norms(rows: Float32) -> Float64:
    """Length of each of *rows* (n, d), summed in float64, of shape (n,)."""
    sums = np.einsum("nd,nd->n", rows, rows, dtype=np.float64, casting="same_kind")
    lengths: Float64 = np.sqrt(sums)
    return lengths


def turned(numbers: Float32) -> Float32:
    """The transpose of *numbers*, with its rows in one piece."""
    return np.ascontiguousarray(numbers.T)
