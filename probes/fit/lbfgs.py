# The function is a pass over a data set that does not fit in memory, and one pass
# evaluates it for many minimisers at once. So the minimiser does not call: it says
# where it wants to know the value, and is told.
"""L-BFGS that is told the function's values, and can be put aside between two."""

import numpy as np

from probes.arrays import Float64
from probes.fit.checkpoint import State

_MAX_HALVINGS = 20


class LBFGS:
    """
    Minimises a smooth convex function; Nocedal and Wright (2006), algorithm 7.5.

    Step lengths by backtracking until the value falls enough (Armijo): of a convex
    function that suffices to keep the approximate Hessian positive.

    Attributes:
        point: Where the function is to be evaluated next, or the minimum once done.

        is_done: Whether no more can be gained.
    """

    def __init__(self, start: Float64, *, tolerance: float, memory: int = 10) -> None:
        """
        Begin at *start*.

        Args:
            start: Of shape (n,).

            tolerance: Done when no element of the gradient is larger.

            memory: Pairs of steps and gradient changes that are kept.
        """
        self.point, self.is_done = start.copy(), False
        self._tolerance, self._memory = tolerance, memory
        self._base, self._value = start.copy(), np.inf
        self._gradient, self._direction = np.zeros_like(start), np.zeros_like(start)
        self._step, self._n_halvings = 1.0, 0
        self._steps = np.empty((0, len(start)))
        self._changes = np.empty((0, len(start)))

    def tell(self, value: float, gradient: Float64) -> None:
        """Take in the function's *value* and *gradient* at `point`, and move it."""
        slope = float(self._gradient @ self._direction)
        if value > self._value + 1e-4 * self._step * slope or not np.isfinite(value):
            self._halve()
            return
        if np.isfinite(self._value):
            self._remember(self.point - self._base, gradient - self._gradient)
        self._base, self._value, self._gradient = self.point, value, gradient
        self._n_halvings = 0
        if np.abs(gradient).max() <= self._tolerance:
            self.is_done = True
            return
        self._direction = -self._newton(gradient)
        first = min(1.0, 1 / float(np.linalg.norm(gradient)))
        self._step = 1.0 if len(self._steps) else first
        self.point = self._base + self._step * self._direction

    @property
    def best(self) -> Float64:
        """The lowest point so far; `point` may be one that was not evaluated yet."""
        return self._base

    def state(self) -> State:
        """Everything, as arrays; `restore` is the inverse."""
        scalars = [self.is_done, self._value, self._step, self._n_halvings]
        return {
            "scalars": np.array(scalars, dtype=np.float64),
            "vectors": np.stack(
                [self.point, self._base, self._gradient, self._direction]
            ),
            "steps": self._steps,
            "changes": self._changes,
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        is_done, value, step, n_halvings = state["scalars"].tolist()
        self.is_done, self._value, self._step = bool(is_done), value, step
        self._n_halvings = int(n_halvings)
        vectors = state["vectors"].copy()
        self.point, self._base, self._gradient, self._direction = vectors
        self._steps = state["steps"]
        self._changes = state["changes"]

    def _halve(self) -> None:
        self._n_halvings += 1
        if self._n_halvings > _MAX_HALVINGS:  # as low as rounding lets it get
            self.point, self.is_done = self._base, True
            return
        self._step /= 2
        self.point = self._base + self._step * self._direction

    def _remember(self, step: Float64, change: Float64) -> None:
        if step @ change <= 1e-12 * float(change @ change):
            return  # rounding: it would make the Hessian indefinite
        self._steps = np.vstack([self._steps, step])[-self._memory :]
        self._changes = np.vstack([self._changes, change])[-self._memory :]

    def _newton(self, gradient: Float64) -> Float64:
        """The inverse Hessian times *gradient*, from the pairs kept."""
        q, pairs = gradient.copy(), list(zip(self._steps, self._changes, strict=True))
        shares = []
        for step, change in reversed(pairs):
            shares.append(float(step @ q) / float(step @ change))
            q -= shares[-1] * change
        if pairs:
            step, change = pairs[-1]
            q *= float(step @ change) / float(change @ change)
        for (step, change), share in zip(pairs, reversed(shares), strict=True):
            q += step * (share - float(change @ q) / float(step @ change))
        return q
