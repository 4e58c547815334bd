"""Rules over a few SAE features: what their activations have to do with each other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import FLOAT32_MAX, Float32, Float64, check_array

RULES = ("weighted_sum", "any", "all", "count")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureRule:
    """
    Feature activations to one number a token, 0 where the rule does not hold.

    - weighted_sum: ``sum_i w_i f_i``, below 0 too if a weight is;
    - any: ``max_i (f_i - t_i)``, where that is above 0;
    - all: ``min_i (f_i - t_i)``, where that is above 0;
    - count: how many ``f_i > t_i``.

    Attributes:
        kind: One of `RULES`.

        weights: w of shape (k,), float32: for weighted_sum.

        levels: t of shape (k,), float32, at least 0: for the others.
    """

    kind: str
    weights: Float32
    levels: Float32

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise ValueError(f"rule: expected one of {list(RULES)}, got {self.kind!r}")
        check_array("rule: weights", self.weights, ("k",))
        check_array("rule: levels", self.levels, (len(self.weights),))
        if (self.levels < 0).any():
            raise ValueError("rule: levels: expected numbers of at least 0")

    def evidence(self, features: Float32) -> Float32:
        """
        The rule on *features* of shape (n_tokens, k), at least 0.

        Returns:
            Of shape (n_tokens, 1), float32; NaN where a feature is.
        """
        return rule_evidence(self.kind, features, self.weights, self.levels)[:, None]

    def contributions(self, features: Float32) -> Float64:
        """
        What each feature (k,) says: w_i f_i, or how far it is above its level.

        0 of those that are not on, or not above it.
        """
        wide = features.astype(np.float64)
        if self.kind == "weighted_sum":
            said: Float64 = wide * self.weights
        else:
            said = np.maximum(wide - self.levels, 0)
        return said

    def may_hold(self, bounds: Float32, slack: Float32) -> NDArray[np.bool_]:
        """
        Which tokens can have evidence other than 0, (n_tokens,).

        Args:
            bounds: No feature is higher, of shape (n_tokens, k).

            slack: What rounding may have taken off a bound, of the same shape.
        """
        levels = 0 if self.kind == "weighted_sum" else self.levels
        # Not "above": a NaN has to be looked at.
        may_be_on: NDArray[np.bool_] = np.logical_not(bounds + slack <= levels)
        judge = np.logical_and if self.kind == "all" else np.logical_or
        found: NDArray[np.bool_] = judge.reduce(may_be_on, axis=1)
        return found


def rule_evidence(
    kind: str, features: Float32, weights: Float32, levels: Float32
) -> Float32:
    """
    What rules of one *kind* say of *features* of shape (..., k), at least 0.

    Args:
        kind: One of `RULES`.

        features: NaN gives NaN.

        weights: Of a shape that fits *features*.

        levels: As *weights*.

    Returns:
        Of shape (...), float32.
    """
    wide = features.astype(np.float64)
    if kind == "weighted_sum":
        found = (wide * weights).sum(axis=-1)
    elif kind == "count":
        excess = wide - levels
        found = (excess > 0).sum(axis=-1).astype(np.float64)
        found[np.isnan(excess).any(axis=-1)] = np.nan
    else:
        choose = np.maximum if kind == "any" else np.minimum
        found = np.maximum(choose.reduce(wide - levels, axis=-1), 0)
    evidence: Float32 = np.clip(found, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    return evidence
