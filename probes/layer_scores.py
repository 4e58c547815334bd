"""How odd a token is to each of several layers, as one number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.arrays import FLOAT32_MAX, Float32, Float64, check_array
from probes.hooks import layer_of
from probes.relu import as_evidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerScores:
    """
    Squared Mahalanobis distance of a token's scores at L places from benign ones.

    With z_l = (m_l - mean_l) / deviation_l and the benign precision of z as F F':

        |z F|^2

    Attributes:
        means: Benign mean of each score, (L,), float32.

        deviations: Benign standard deviation of each, (L,), float32, positive.

        factor: F, of shape (L, L), float32.
    """

    means: Float32
    deviations: Float32
    factor: Float32

    def __post_init__(self) -> None:
        n = len(self.means)
        check_array("layer scores: means", self.means, ("n",))
        check_array("layer scores: deviations", self.deviations, (n,))
        check_array("layer scores: factor", self.factor, (n, n))
        if not (self.deviations > 0).all():
            raise ValueError("layer scores: deviations: expected positive numbers")

    def distance(self, scores: Float64) -> Float32:
        """
        Evidence of shape (n_tokens, 1) from *scores* of shape (n_tokens, L).

        In float64, and kept within float32 before squares are taken, so that no
        finite score becomes infinite.
        """
        kept = self._standard(scores)
        white = kept @ self.factor.astype(np.float64)
        return as_evidence((white**2).sum(axis=1, keepdims=True))

    def contributions(self, scores: Float64) -> Float64:
        """
        What each of one token's *scores* (L,) adds to its distance, (L,).

        z_l (F F' z)_l, whose sum is the distance: below 0 where it is as benign ones
        are, given the others.
        """
        kept = self._standard(scores)
        factor = self.factor.astype(np.float64)
        said: Float64 = kept * (factor @ (kept @ factor))
        return said

    def _standard(self, scores: Float64) -> Float64:
        standard = (scores - self.means) / self.deviations.astype(np.float64)
        kept: Float64 = np.clip(standard, -FLOAT32_MAX, FLOAT32_MAX)
        return kept


def named_pairs(hook_points: Sequence[str], said: Float64) -> dict[str, float]:
    """What each difference between two of *hook_points* *said* (L,), by its name."""
    pairs = zip(hook_points, hook_points[1:], said.tolist(), strict=False)
    return {f"{lower} to {upper}": value for lower, upper, value in pairs}


def check_rising(what: str, hook_points: Sequence[str]) -> None:
    """
    Raise `ValueError` unless *hook_points* are two or more, by rising layer.

    Args:
        what: Names the detector in the message.

        hook_points: Where it reads.
    """
    layers = [layer_of(hook_point) for hook_point in hook_points]
    if len(layers) < 2 or sorted(set(layers)) != layers:
        raise ValueError(
            f"{what}: hook_points: expected two or more by rising layer, "
            f"got {list(hook_points)}"
        )
