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
    Copy each site's first rows, and of each the first values.

    Args:
        target: Contiguous, of shape (n_sites, n_rows, width).
        source: Contiguous, of the same or a larger shape.
    """
    if not target.size:
        return
    n_sites, n, width = target.shape
    _, max_rows, k_max = source.shape
    n_items, n_bytes = n, 4 * width
    if width == k_max:
        n_items, n_bytes = 1, n * n_bytes
    item = np.dtype((np.void, n_bytes))
    for site in range(n_sites):
        start = 4 * site * max_rows * k_max
        copy_items(
            np.ndarray(n_items, item, target, n_bytes * n_items * site),
            np.ndarray(n_items, item, source, start, (4 * k_max,)),
        )


def copy_items(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy *source* to *target*, both of one axis and as long; types may differ."""
    for start in range(0, len(target), _N_ITEMS):
        target[start : start + _N_ITEMS] = source[start : start + _N_ITEMS]
