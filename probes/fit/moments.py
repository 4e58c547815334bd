# Sums of x - c instead of x, for a c near the mean: a variance is a difference of
# sums, and what an offset adds to both would cancel.
"""Means and covariances of many sets of rows, in one pass over a data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32, Float64
from probes.dataset import Dataset
from probes.fit.checkpoint import Checkpoint, State
from probes.fit.chunks import chunks, n_rows

Mask = NDArray[np.bool_]
Progress = Callable[[int, int, str], None]

# A state with covariances is large, and is saved this seldom.
_CHUNKS_A_SAVE = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """
    What is known of a set of rows.

    Attributes:
        n_rows: How many there are.

        mean: Of shape (d,), float64.

        variance: Of each dimension, (d,), float64, over n_rows.

        covariance: Of shape (d, d), float64, over n_rows; None where not asked for.

        shrinkage: Share of the covariance that Ledoit and Wolf (2004) replace by a
            multiple of the identity; 0 where there is no covariance.
    """

    n_rows: int
    mean: Float64
    variance: Float64
    covariance: Float64 | None
    shrinkage: float

    def shrunk_covariance(self) -> Float64:
        """
        The covariance after Ledoit and Wolf (2004), as scikit-learn gives it.

        Raises:
            ValueError: It was not asked for.
        """
        if self.covariance is None:
            raise ValueError("covariance: expected one to be gathered, got none")
        shrunk = (1 - self.shrinkage) * self.covariance
        shrunk.flat[:: len(shrunk) + 1] += self.shrinkage * self.variance.mean()
        return shrunk


def gather(
    dataset: Dataset,
    hook_points: Sequence[str],
    masks: Mapping[str, Mask],
    with_covariance: Sequence[str],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """
    The moments of several sets of rows, in one pass.

    Args:
        dataset: Has activations at *hook_points*.

        hook_points: Whose activations, side by side.

        masks: By name, which rows; of shape (n_rows,).

        with_covariance: Names of those whose covariance is wanted, d^2 float64 each.

        checkpoint: Where an interrupted pass goes on.

        progress: Called with rows done, rows in all, and what is done.

    Returns:
        By name, for each mask with rows.
    """
    names, total = list(masks), n_rows(dataset)
    state = checkpoint.load() or {"next_row": np.zeros(())}
    for index, (rows, found) in enumerate(
        chunks(dataset, hook_points, int(state["next_row"])), start=1
    ):
        member = np.stack([masks[name][rows] for name in names])
        if "shift" not in state:
            state |= _start(found, len(names), with_covariance)
        _add(state, found, member, names, with_covariance)
        state["next_row"] = np.array(rows.stop, np.float64)
        if index % _CHUNKS_A_SAVE == 0 or rows.stop == total:
            checkpoint.save(state)
        if progress is not None:
            progress(rows.stop, total, "means and covariances")
    return {
        name: _finish(state, row, name)
        for row, name in enumerate(names)
        if masks[name].any()
    }


def _start(rows: Float32, n_masks: int, with_covariance: Sequence[str]) -> State:
    d = rows.shape[1]
    state: State = {
        "shift": rows.mean(axis=0, dtype=np.float64),
        "counts": np.zeros(n_masks),
        "sums": np.zeros((n_masks, d)),
        "squares": np.zeros((n_masks, d)),
    }
    for name in with_covariance:
        state[f"products/{name}"] = np.zeros((d, d))
        state[f"norms/{name}"] = np.zeros(2)
        state[f"weighted/{name}"] = np.zeros(d)
    return state


def _add(
    state: State,
    rows: Float32,
    member: Mask,
    names: Sequence[str],
    with_covariance: Sequence[str],
) -> None:
    """Take in *rows*; *member* of shape (n_masks, n_rows) says whose they are."""
    shifted = np.subtract(rows, state["shift"], dtype=np.float64)
    weights = member.astype(np.float64)
    _into(state, "counts", weights.sum(axis=1))
    _into(state, "sums", weights @ shifted)
    _into(state, "squares", weights @ shifted**2)
    for name in with_covariance:
        chosen = member[names.index(name)]
        if not chosen.any():
            continue
        mine = shifted if chosen.all() else shifted[chosen]
        norms = np.einsum("td,td->t", mine, mine)
        _into(state, f"products/{name}", mine.T @ mine)
        _into(state, f"norms/{name}", np.array([norms.sum(), norms @ norms]))
        _into(state, f"weighted/{name}", norms @ mine)


def _into(state: State, key: str, more: Float64) -> None:
    state[key] += more


def _finish(state: State, row: int, name: str) -> Moments:
    n = float(state["counts"][row])
    offset: Float64 = state["sums"][row] / n
    variance = np.maximum(state["squares"][row] / n - offset**2, 0)
    covariance, shrinkage = None, 0.0
    if f"products/{name}" in state:
        products = state[f"products/{name}"] / n
        covariance = products - np.outer(offset, offset)
        fourth = _fourth(state, name, products, offset, n)
        shrinkage = _ledoit_wolf(covariance, fourth, n)
    return Moments(
        n_rows=int(n),
        mean=state["shift"] + offset,
        variance=variance,
        covariance=covariance,
        shrinkage=shrinkage,
    )


def _fourth(
    state: State, name: str, products: Float64, offset: Float64, n: float
) -> float:
    """Mean of |x - mean|^4, from sums over y = x - c with offset e = mean - c."""
    square, fourth = (float(v) / n for v in state[f"norms/{name}"])
    along = float(state[f"weighted/{name}"] @ offset) / n  # mean of |y|^2 e.y
    e2 = float(offset @ offset)
    # |y - e|^2 = |y|^2 - 2 e.y + |e|^2, squared, averaged, with mean e.y = |e|^2.
    mixed = 4 * float(offset @ products @ offset) - 4 * along
    return fourth + mixed + 2 * e2 * square - 3 * e2**2


def _ledoit_wolf(covariance: Float64, fourth: float, n: float) -> float:
    """Shrinkage towards a multiple of the identity; Ledoit and Wolf (2004)."""
    d = len(covariance)
    level = np.trace(covariance) / d
    norm = float((covariance**2).sum())
    spread = (norm - d * level**2) / d
    noise = min((fourth - norm) / (d * n), spread)
    return float(max(noise, 0.0) / spread) if spread > 0 else 0.0
