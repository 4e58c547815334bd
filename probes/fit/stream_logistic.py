"""Logistic regressions that share passes over a data set larger than memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.arrays import Float32, Float64, Int64
from probes.dataset import Dataset
from probes.fit.bags import Bags
from probes.fit.checkpoint import Checkpoint, State
from probes.fit.chunks import chunks, n_rows
from probes.fit.lbfgs import LBFGS
from probes.fit.logistic import LogisticOptions
from probes.fit.moments import Moments, Progress

# Of the objective's gradient: as scikit-learn's own default.
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classes:
    """
    What one regression separates.

    Attributes:
        bags: Rows of the requests of either kind.

        options: `rounds`, `keep` and `inverse_regularisation` are used.

        moments: Of all rows of *bags*, to standardise them.
    """

    bags: Bags
    options: LogisticOptions
    moments: Moments

    @property
    def scale(self) -> Float64:
        """Standard deviations, (d,); 1 where nothing moves."""
        deviation = np.sqrt(self.moments.variance)
        return np.where(deviation > 0, deviation, 1.0)


def minimise(
    dataset: Dataset,
    hook_points: Sequence[str],
    classes: Mapping[str, Classes],
    *,
    checkpoint: Checkpoint,
    max_passes: int,
    progress: Progress | None = None,
) -> dict[str, tuple[Float64, float]]:
    """
    Directions and biases on raw activations, by name.

    The objective is scikit-learn's on standardised rows with balanced classes,
    divided by C n: mean weighted cross-entropy + |w|^2 / (2 C n). Each evaluation is
    a pass that all regressions share; from the second round on a regression keeps of
    each positive request the rows that it scored highest.
    """
    if not classes:
        return {}
    fits = [_Fit(dataset, one) for one in classes.values()]
    state = checkpoint.load() or {}
    first_round = int(state.get("round", np.zeros(()))[()])
    n_done = int(state.get("passes", np.zeros(()))[()])
    for number, fit in enumerate(fits):
        fit.restore(_part(state, f"{number}/"))
    n_rounds = max(one.options.rounds for one in classes.values())
    for number in range(first_round, n_rounds):
        if number > first_round or not n_done:
            _begin(dataset, hook_points, fits, number, progress)
            n_done = 0
        while n_done < max_passes and any(not fit.is_done for fit in fits):
            text = f"logistic regression, round {number + 1}, pass {n_done + 1}"
            _evaluate(dataset, hook_points, fits, text, progress)
            n_done += 1
            checkpoint.save(_state(fits, number, n_done))
    return {
        name: fit.raw(fit.minimiser.best)
        for name, fit in zip(classes, fits, strict=True)
    }


def _state(fits: Sequence["_Fit"], number: int, n_done: int) -> State:
    state: State = {"round": np.array(number), "passes": np.array(n_done)}
    for index, fit in enumerate(fits):
        state |= {f"{index}/{key}": value for key, value in fit.state().items()}
    return state


def _part(state: State, prefix: str) -> State:
    found = (key for key in state if key.startswith(prefix))
    return {key.removeprefix(prefix): state[key] for key in found}


class _Fit:
    """One regression: its labels, its minimiser, and the sums of a pass."""

    def __init__(self, dataset: Dataset, classes: Classes) -> None:
        self.classes = classes
        self.scale, self.mean = classes.scale, classes.moments.mean
        self.labels = np.zeros(n_rows(dataset), dtype=np.int8)
        self.minimiser = self._new(np.zeros(len(self.mean) + 1))
        self.label(classes.bags.positive)

    @property
    def is_done(self) -> bool:
        return self.minimiser.is_done

    def label(self, positive: Sequence[Int64]) -> None:
        """Take *positive* as the rows that show the behaviour."""
        self.labels[:] = 0
        self.labels[np.concatenate(self.classes.bags.negative)] = -1
        self.labels[np.concatenate(positive)] = 1
        counts = [int((self.labels == label).sum()) for label in (-1, 1)]
        self.n = sum(counts)
        self.shares = [self.n / (2 * n) for n in counts]

    def raw(self, point: Float64) -> tuple[Float64, float]:
        """Direction and bias on raw activations, at *point*."""
        weight = point[:-1] / self.scale
        return weight, float(point[-1] - weight @ self.mean)

    def again(self) -> None:
        """Begin another round where the last one ended."""
        self.minimiser = self._new(self.minimiser.best)

    def tell(self, loss: float, by_weight: Float64, by_bias: float) -> None:
        """Take in the sums of a pass: loss, and its gradient on raw activations."""
        point, strength = self.minimiser.point, self._strength()
        weight = point[:-1]
        gradient = np.append(
            (by_weight - by_bias * self.mean) / self.scale / self.n + strength * weight,
            by_bias / self.n,
        )
        value = loss / self.n + 0.5 * strength * float(weight @ weight)
        self.minimiser.tell(value, gradient)

    def state(self) -> State:
        return {"labels": self.labels, **self.minimiser.state()}

    def restore(self, state: State) -> None:
        """Go on from *state*, if there is one."""
        if state:
            kept = np.flatnonzero(state.pop("labels") == 1)
            self.label([kept])
            self.minimiser.restore(state)

    def _new(self, start: Float64) -> LBFGS:
        return LBFGS(start, tolerance=_TOLERANCE)

    def _strength(self) -> float:
        return 1 / (self.classes.options.inverse_regularisation * self.n)


def _begin(
    dataset: Dataset,
    hook_points: Sequence[str],
    fits: Sequence[_Fit],
    number: int,
    progress: Progress | None,
) -> None:
    """Choose the rows of the positive requests for round *number*."""
    mine = [fit for fit in fits if 0 < number < fit.classes.options.rounds]
    if not mine:
        return
    scores = np.empty((n_rows(dataset), len(mine)), dtype=np.float32)
    weights = np.stack([fit.raw(fit.minimiser.best)[0] for fit in mine], axis=1)
    for rows, found in chunks(dataset, hook_points):
        scores[rows] = found @ weights
        if progress is not None:
            progress(rows.stop, n_rows(dataset), f"scores for round {number + 1}")
    for column, fit in enumerate(mine):
        keep, bags = fit.classes.options.keep, fit.classes.bags.positive
        fit.label([_top(scores[:, column], rows, keep) for rows in bags])
        fit.again()


def _top(scores: Float32, rows: Int64, keep: float) -> Int64:
    n_kept = max(1, round(keep * len(rows)))
    return rows[np.argsort(-scores[rows], kind="stable")[:n_kept]]


def _evaluate(
    dataset: Dataset,
    hook_points: Sequence[str],
    fits: Sequence[_Fit],
    text: str,
    progress: Progress | None,
) -> None:
    """One pass: the loss and gradient of every regression that is not done."""
    live = [fit for fit in fits if not fit.is_done]
    raws = [fit.raw(fit.minimiser.point) for fit in live]
    weights = np.stack([weight for weight, _ in raws])
    biases = np.array([bias for _, bias in raws])
    losses, by_bias = np.zeros(len(live)), np.zeros(len(live))
    by_weight = np.zeros_like(weights)
    negative, positive = (np.array([[fit.shares[i]] for fit in live]) for i in (0, 1))
    for rows, found in chunks(dataset, hook_points):
        wide = found.astype(np.float64)
        labels = np.stack([fit.labels[rows] for fit in live]).astype(np.float64)
        # Both classes weigh the same; a row of neither weighs nothing.
        shares = np.where(labels > 0, positive, negative) * (labels != 0)
        margins = labels * (weights @ wide.T + biases[:, None])
        losses += (shares * np.logaddexp(0, -margins)).sum(axis=1)
        residuals = -labels * shares * np.exp(-np.logaddexp(0, margins))
        by_weight += residuals @ wide
        by_bias += residuals.sum(axis=1)
        if progress is not None:
            progress(rows.stop, n_rows(dataset), text)
    for index, fit in enumerate(live):
        fit.tell(float(losses[index]), by_weight[index], float(by_bias[index]))
