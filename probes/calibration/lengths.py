"""Requests by length: which bin a request is in, and where a step leaves it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from probes.arrays import Int64


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """
    Rows of a step whose requests stay in one bin each.

    Attributes:
        requests: Of shape (n,): which of the step's requests.

        rows: Their rows, or all of the step's.

        row_offsets: Of shape (n + 1,), into *rows*.

        bins: Of shape (n,): the bin of each.
    """

    requests: Int64
    rows: Int64 | slice
    row_offsets: Int64
    bins: Int64


def bins_of(longest: Int64, n_tokens: Int64) -> Int64:
    """
    The bin of requests of *n_tokens*; ``len(longest)`` where they are longer than all.

    >>> bins_of(np.array([8, 64]), np.array([0, 8, 9, 65])).tolist()
    [0, 0, 1, 2]
    """
    return np.searchsorted(longest, n_tokens, side="left").astype(np.int64)


def pieces(n_before: Int64, row_offsets: Int64, longest: Int64) -> Iterator[Piece]:
    """
    Cut a step where requests pass from one bin to the next.

    However a request comes in steps, its statistic is then known at the end of each
    bin: what a boundary over length is held against must not depend on the cutting.
    Rows beyond the last bin are in no piece.

    Args:
        n_before: Of shape (n_requests,): tokens of each before this step.

        row_offsets: Of shape (n_requests + 1,); request i has the rows from
            ``row_offsets[i]`` up to ``row_offsets[i + 1]``.

        longest: Of shape (n_bins,), rising: the longest length of each bin.
    """
    n_left = np.diff(row_offsets)
    n_seen, first_rows = n_before.copy(), row_offsets[:-1].copy()
    while n_left.any():
        bins = bins_of(longest, n_seen + 1)
        is_within = bins < len(longest)
        room = longest[np.minimum(bins, len(longest) - 1)] - n_seen
        n_taken = np.where(is_within, np.minimum(n_left, room), 0)
        requests = np.flatnonzero(n_taken)
        if not len(requests):
            return
        lengths = n_taken[requests]
        offsets = np.concatenate([[0], lengths.cumsum()])
        rows: Int64 | slice = slice(None)
        if offsets[-1] < row_offsets[-1]:
            rows = np.repeat(first_rows[requests] - offsets[:-1], lengths)
            rows = rows + np.arange(offsets[-1])
        yield Piece(requests, rows, offsets, bins[requests])
        n_left = np.where(is_within, n_left - n_taken, 0)
        n_seen, first_rows = n_seen + n_taken, first_rows + n_taken
