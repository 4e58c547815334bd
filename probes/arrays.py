"""Array types and the check that every record runs on its arrays."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Evidence is kept at or below this, so that a square can never become infinite.
FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_array(
    what: str,
    array: NDArray[np.generic],
    shape: tuple[int | str, ...],
    dtype: type[np.generic] = np.float32,
) -> None:
    """
    Raise `ValueError` unless *array* has *shape* and *dtype* and is finite.

    Args:
        what: Names the array in the message, e.g. ``"probe 'lie': weight"``.

        array: The array to check.

        shape: Sizes; a string is a size that may be anything, and names it.

        dtype: Exactly this.
    """
    fits = len(shape) == array.ndim and all(
        isinstance(want, str) or want == got
        for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(
            f"{what}: expected ({sizes}) {np.dtype(dtype).name}, "
            f"got {array.shape} {array.dtype}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: expected finite numbers, got NaN or infinity")


def squared_norms(activations: Float32) -> Float32:
    """
    Squared lengths of shape (n_tokens,) of *activations* (n_tokens, d_model).

    Summed in float64, so that what remains is one float32 rounding: a
    Mahalanobis head subtracts from this number (see `probes.mahalanobis`).
    """
    sums = np.einsum("td,td->t", activations, activations, dtype=np.float64)
    squares: Float32 = np.minimum(sums, FLOAT32_MAX).astype(np.float32)
    return squares
