"""Arithmetic on segments: a step's rows, request by request."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from probes.arrays import Float32, Float64, Int64
from probes.errors import ActivationShapeError


def checked(evidence: Float32, n_columns: int) -> Float64:
    """
    *evidence* of shape (n_tokens, n_columns) as float64.

    Raises:
        ActivationShapeError: It has another shape or dtype, or is not finite.
    """
    is_fitting = evidence.ndim == 2 and evidence.shape[1] == n_columns
    if not is_fitting or evidence.dtype != np.float32:
        raise ActivationShapeError(
            f"expected evidence (n_tokens, {n_columns}) float32, "
            f"got {evidence.shape} {evidence.dtype}"
        )
    # A NaN would win no comparison and so pass as clean.
    if not np.isfinite(evidence).all():
        raise ActivationShapeError("expected finite evidence, got NaN or infinity")
    return evidence.astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """
    The rows of a step, by request.

    Attributes:
        values: Of shape (n_tokens, m), float64.

        active: Of shape (n_requests,): which requests have rows.

        lengths: Of shape (n_active,): rows of each of these.

        starts: Of shape (n_active,): their first rows.
    """

    values: Float64
    active: NDArray[np.bool_]
    lengths: Int64
    starts: Int64

    @classmethod
    def of(
        cls, state: Float64, evidence: Float32, row_offsets: Int64, n_columns: int
    ) -> "Segments":
        """
        Check that *evidence* and *row_offsets* fit each other and *state*.

        Raises:
            ActivationShapeError: They do not, or evidence is not finite.
        """
        values = checked(evidence, n_columns)
        lengths = np.diff(row_offsets)
        if (
            row_offsets.shape != (len(state) + 1,)
            or (int(row_offsets[0]), int(row_offsets[-1])) != (0, len(values))
            or (lengths < 0).any()
        ):
            raise ActivationShapeError(
                f"expected {len(state) + 1} rising row offsets from 0 to "
                f"{len(values)}, got {row_offsets.tolist()[:8]}"
            )
        active = lengths > 0
        return cls(values, active, lengths[active], row_offsets[:-1][active])

    def __bool__(self) -> bool:
        return len(self.values) > 0

    @property
    def last_rows(self) -> Int64:
        """The last row of each active request, (n_active,)."""
        return self.starts + self.lengths - 1

    @property
    def index_in_segment(self) -> Int64:
        """How many rows of its segment are before each row, (n_tokens,)."""
        return np.arange(len(self.values)) - np.repeat(self.starts, self.lengths)

    def sums(self, values: Float64) -> Float64:
        """Sum of *values* (n_tokens, ...) over each active request's rows."""
        return np.add.reduceat(values, self.starts)

    def maxima(self, values: Float64) -> Float64:
        """Maximum of *values* (n_tokens, ...) over each active request's rows."""
        return np.maximum.reduceat(values, self.starts)

    def spread(self, per_request: Float64) -> Float64:
        """A value an active request, (n_active, ...), to each of its rows."""
        return np.repeat(per_request, self.lengths, axis=0)

    def windows(self, earlier: Float64, reach: int) -> tuple[Float64, Float64]:
        """
        The *reach* rows that end with each row, with those of former segments.

        Args:
            earlier: The rows before each active request's segment, oldest first,
                (n_active, reach - 1, m).

            reach: Rows in a window.

        Returns:
            The windows, (n_tokens, m, reach), and what *earlier* will be for the
            next segment.
        """
        n_active, n_earlier, m = earlier.shape
        if len(self.values) == n_active:
            # A decode step: each request has one row, which is its window's last.
            joined = np.concatenate([earlier, self.values[:, None]], axis=1)
            return joined.swapaxes(1, 2), joined[:, 1:]
        # Each request's rows behind its earlier ones, in one array.
        before = np.arange(1, n_active + 1) * n_earlier
        rows = np.arange(len(self.values)) + np.repeat(before, self.lengths)
        joined = np.empty((len(self.values) + n_active * n_earlier, m))
        joined[rows] = self.values
        kept = np.arange(n_earlier) - n_earlier
        joined[(self.starts + before)[:, None] + kept] = earlier
        windows = sliding_window_view(joined, reach, axis=0)[rows - n_earlier]
        ends = self.starts + before + self.lengths
        return windows, joined[ends[:, None] + kept]
