"""Statistics of a data set's requests on their way, at the lengths of a grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import is_answer
from probes.arrays import Float64, Int64
from probes.bank import ProjectionBank
from probes.calibration.lengths import bins_of, pieces
from probes.dataset import Dataset
from probes.detector import Detector
from probes.evidence import Evidence, Scorer
from probes.fit.chunks import read_requests
from probes.fit.evaluate import groups_of
from probes.running import RunningStatistics

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectories:
    """
    Statistics of requests on their way, at the lengths of a grid.

    Attributes:
        grid: Lengths in tokens, int64 (n_lengths,), rising; the last is not below any
            request's.

        n_tokens: Length of each request, int64 (n_requests,).

        statistics: float64 (n_requests, n_lengths, n_detectors): at the end of so many
            tokens, or of the request where it is shorter; -inf where a detector had
            counted none.

        is_monotone: By detector, whether its statistic never falls, (n_detectors,).
    """

    grid: Int64
    n_tokens: Int64
    statistics: Float64
    is_monotone: NDArray[np.bool_]

    def at(self, longest: Int64, which: Int64) -> "Trajectories":
        """
        The requests *which*, at the lengths *longest*.

        These are of the grid, or beyond it, where a request is what it was at its end.
        """
        columns = np.minimum(bins_of(self.grid, longest), len(self.grid) - 1)
        return Trajectories(
            grid=longest,
            n_tokens=self.n_tokens[which],
            statistics=self.statistics[which][:, columns],
            is_monotone=self.is_monotone,
        )

    def peaks(self, centre: Float64, scale: Float64) -> Float64:
        """
        Peaks at each request's end, (n_requests, n_detectors).

        As `probes.calibration.Peaks` finds them; a request beyond the grid has those
        of the last length.
        """
        heights = (self.statistics - centre) / scale
        bins = np.minimum(self.bins, len(self.grid) - 1)
        is_later = np.arange(len(self.grid)) > bins[:, None]
        on_the_way = np.where(is_later[:, :, None], -np.inf, heights).max(axis=1)
        at_end = heights[np.arange(len(bins)), bins]
        peaks: Float64 = np.where(self.is_monotone, on_the_way, at_end)
        return peaks

    @property
    def bins(self) -> Int64:
        """The bin that each request ends in, with the grid's lengths as bins."""
        return bins_of(self.grid, self.n_tokens)


def length_grid(longest: int) -> Int64:
    """
    Powers of two, up to the first that is not below *longest*.

    >>> length_grid(100).tolist()
    [1, 2, 4, 8, 16, 32, 64, 128]
    """
    return 1 << np.arange(max(longest - 1, 0).bit_length() + 1, dtype=np.int64)


def trajectories(
    dataset: Dataset,
    detectors: Sequence[Detector],
    indices: Sequence[int],
    progress: Progress | None = None,
) -> Trajectories:
    """
    Score requests as the monitor would, and note where they stand on the way.

    Args:
        dataset: Has activations at the hook points of *detectors*.

        detectors: A detector set.

        indices: Which requests; those without rows are left out, as they are neither
            scored nor flagged.

        progress: Called with requests done and requests in all.
    """
    scored = [i for i in indices if dataset.requests[i].n_rows]
    lengths = np.array([dataset.requests[i].n_rows for i in scored], dtype=np.int64)
    grid = length_grid(int(lengths.max(initial=1)))
    bank = ProjectionBank.compile(detectors)
    scorer = Scorer(bank, detectors)
    parts = [np.empty((0, len(grid), len(detectors)))]
    n_done = 0
    for group in groups_of(dataset, scored):
        rows = np.concatenate([np.r_[dataset.rows_of(i)] for i in group])
        whole = {h: read_requests(dataset, h, group) for h in bank.hook_points}
        columns, norms = bank.project(whole)
        evidence = scorer.evidence(columns, norms, whole)
        n_rows = lengths[n_done : n_done + len(group)]
        _check_finite(dataset, group, n_rows, evidence)
        n_prompt = [dataset.requests[i].n_prompt_tokens for i in group]
        positions = dataset.positions[rows].astype(np.int64)
        answers = is_answer(positions, np.repeat(n_prompt, n_rows))
        parts.append(follow(detectors, evidence, n_rows, answers, grid))
        n_done += len(group)
        if progress is not None:
            progress(n_done, len(scored))
    return Trajectories(
        grid=grid,
        n_tokens=lengths,
        statistics=np.concatenate(parts),
        is_monotone=np.array([d.aggregator.is_monotone for d in detectors]),
    )


def _check_finite(
    dataset: Dataset, group: Sequence[int], n_rows: Int64, evidence: Evidence
) -> None:
    """Raise `ValueError` that names the request if a token's evidence is no number."""
    is_odd = ~evidence.is_finite()
    if is_odd.any():
        ends = n_rows.cumsum()
        place = int(np.searchsorted(ends, np.flatnonzero(is_odd)[0], side="right"))
        raise ValueError(
            f"{dataset.path}: request {dataset.requests[group[place]].request_id!r}: "
            f"expected finite evidence, found {int(is_odd.sum())} tokens without: "
            f"activations too large for float32"
        )


def follow(
    detectors: Sequence[Detector],
    evidence: Evidence,
    n_tokens: Int64,
    is_answer: NDArray[np.bool_],
    grid: Int64,
) -> Float64:
    """
    Where requests stand after each length of *grid*, or at their end before it.

    Args:
        detectors: A detector set.

        evidence: Of n_rows tokens, request by request.

        n_tokens: Of shape (n_requests,): rows of each request.

        is_answer: Of shape (n_rows,).

        grid: Of shape (n_lengths,), rising.

    Returns:
        Of shape (n_requests, n_lengths, n_detectors).
    """
    statistics = np.full((len(n_tokens), len(grid), len(detectors)), -np.inf)
    running = RunningStatistics(detectors, len(n_tokens))
    offsets: Int64 = np.concatenate([[0], n_tokens.cumsum()])
    for piece in pieces(np.zeros_like(n_tokens), offsets, grid):
        found = running.update(
            piece.requests,
            evidence.rows(piece.rows),
            piece.row_offsets,
            is_answer[piece.rows],
        )
        is_from_here = np.arange(len(grid)) >= piece.bins[:, None]
        statistics[piece.requests] = np.where(
            is_from_here[:, :, None], found[:, None], statistics[piece.requests]
        )
    return statistics
