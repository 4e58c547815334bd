# For more than 500 items numpy lets go of the interpreter. Then the sender's thread has
# it, and may be put off together with it by a busy daemon, while the engine waits: some
# milliseconds for a copy of microseconds. So items are made large, and few at a time.
"""Copies within the host's memory that no other thread gets between."""

import numpy as np
from numpy.typing import NDArray

_N_ITEMS = 500


def copy_blocks(target: NDArray[np.float32], source: NDArray[np.float32]) -> None:
    """
    Copy each hook point's first rows, and of each the first values.

    Args:
        target: Contiguous, of shape (n_sites, n_rows, width).
        source: Contiguous, of a shape that is nowhere smaller.

    Raises:
        ValueError: *source* has fewer rows or values.
    """
    n_sites, n, width = target.shape
    _, max_rows, k_max = source.shape
    if n > max_rows or width > k_max:
        raise ValueError(f"expected {n} rows of {width}, got {max_rows} of {k_max}")
    if target.size <= _N_ITEMS:
        target[...] = source[:, :n, :width]
        return
    shape, item = (n_sites, n), np.dtype(f"V{4 * width}")
    to = np.ndarray(shape, item, target)
    of = np.ndarray(shape, item, source, 0, (4 * max_rows * k_max, 4 * k_max))
    if to.size <= _N_ITEMS:
        to[...] = of
        return
    for site in range(n_sites):
        for start in range(0, n, _N_ITEMS):
            some = slice(start, start + _N_ITEMS)
            to[site, some] = of[site, some]
