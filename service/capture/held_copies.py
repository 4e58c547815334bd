# For more than 500 items numpy lets go of the interpreter. Then the sender's thread has
# it, and may be put off together with it by a busy daemon, while the engine waits: some
# milliseconds for a copy of microseconds. So items are made large, and few at a time.
"""Copies within the host's memory that no other thread gets between."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_N_ITEMS = 500


def copy_blocks(target: NDArray[np.float32], source: NDArray[np.float32]) -> None:
    """
    Copy each hook point's first rows, and of each the first values.

    Where all values of a row are copied the bytes are in one piece, and need no array.

    Args:
        target: Contiguous, of shape (n_sites, n_rows, width).
        source: Contiguous, of a larger shape.
    """
    n_sites, n, width = target.shape
    if target.size <= _N_ITEMS:
        target[...] = source[:, :n, :width]
        return
    _, max_rows, k_max = source.shape
    shape, item = (n_sites, n), np.dtype(f"V{4 * width}")
    to = np.ndarray(shape, item, target)
    of = np.ndarray(shape, item, source, 0, (4 * max_rows * k_max, 4 * k_max))
    if to.size <= _N_ITEMS:
        to[...] = of
        return
    for site in range(n_sites):
        copy_items(to[site], of[site])


def copy_items(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy *source* to *target*, both of one axis and as long; types may differ."""
    n = len(target)
    if n <= _N_ITEMS:
        target[...] = source
        return
    for start in range(0, n, _N_ITEMS):
        target[start : start + _N_ITEMS] = source[start : start + _N_ITEMS]
