"""Reads a data set from its start to its end, a bounded number of rows at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from probes.arrays import Float32
from probes.dataset import Dataset

# Of float32 rows. What is made of them in float64 is a few times this.
CHUNK_BYTES = 32 << 20


def chunk_rows(dataset: Dataset, hook_points: Sequence[str]) -> int:
    """How many rows a chunk has; the same for the same data set."""
    width = sum(dataset.activations[h].shape[1] for h in hook_points)
    return max(1, CHUNK_BYTES // (4 * int(width)))


def n_rows(dataset: Dataset) -> int:
    return len(dataset.positions)


def chunks(
    dataset: Dataset, hook_points: Sequence[str], first_row: int = 0
) -> Iterator[tuple[slice, Float32]]:
    """
    The rows of *dataset* in order, those of several hook points end to end.

    Read, not mapped: a mapped page that was touched counts as this process's memory
    until the system takes it back.

    Args:
        dataset: The data set.

        hook_points: Whose activations, side by side.

        first_row: Where to begin; that of a chunk.

    Yields:
        Which rows, and their activations of shape (n_rows, d), float32.
    """
    size, total = chunk_rows(dataset, hook_points), n_rows(dataset)
    for first in range(first_row, total, size):
        rows = slice(first, min(first + size, total))
        parts = [read_rows(dataset.activations[h], rows) for h in hook_points]
        yield rows, parts[0] if len(parts) == 1 else np.hstack(parts)


def read_requests(dataset: Dataset, hook_point: str, indices: Sequence[int]) -> Float32:
    """The activations of requests *indices* end to end, (n_rows, d_model), read."""
    activations = dataset.activations[hook_point]
    parts = [read_rows(activations, dataset.rows_of(index)) for index in indices]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_rows(activations: Float32, rows: slice) -> Float32:
    """Some rows of a data set's *activations*, read where they are mapped."""
    if not isinstance(activations, np.memmap) or activations.filename is None:
        return activations[rows]
    n, width = rows.stop - rows.start, activations.shape[1]
    read: Float32 = np.fromfile(
        activations.filename,
        dtype=np.float32,
        count=n * width,
        offset=activations.offset + rows.start * width * activations.itemsize,
    )
    return read.reshape(n, width)
