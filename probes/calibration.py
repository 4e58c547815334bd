"""Thresholds with a guarantee, and the evidence they rest on."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from probes.arrays import Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """
    A threshold on a request statistic, and where it came from.

    Attributes:
        threshold: A request is flagged when its statistic is above, strictly.

        alpha: Promised rate of flags on benign requests, in (0, 1).

        n_benign: Benign requests it was chosen on.

        n_flagged_benign: How many of those it flags.

        dataset_sha256: Digest of the data set they came from.
    """

    threshold: float
    alpha: float
    n_benign: int
    n_flagged_benign: int
    dataset_sha256: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold: expected a number, got {self.threshold}")
        _check_alpha(self.alpha)
        if not 0 <= self.n_flagged_benign <= self.n_benign or self.n_benign < 1:
            raise ValueError(
                f"n_flagged_benign: expected 0 to n_benign, "
                f"got {self.n_flagged_benign} of {self.n_benign}"
            )

    def margin(self, statistic: Float64) -> Float64:
        """How far *statistic* is above the threshold; flagged when above 0."""
        return statistic - self.threshold


def n_benign_needed(alpha: float) -> int:
    """
    The fewest benign requests that a promise of *alpha* can rest on.

    >>> n_benign_needed(0.01)
    99
    """
    _check_alpha(alpha)
    return math.ceil(1 / _exactly(alpha)) - 1


def calibrate(
    benign_statistics: Float64, alpha: float, dataset_sha256: str
) -> Calibration:
    """
    Choose the threshold that flags a benign request with probability <= *alpha*.

    Split conformal: the ceil((n + 1)(1 - alpha))-th smallest of n statistics
    (Vovk et al. 2005; Angelopoulos and Bates 2021, arXiv 2107.07511, theorem 1).
    It holds for any distribution, on average over calibration sets, if the next
    benign request is exchangeable with these: the same traffic, the same lengths.

    Args:
        benign_statistics: Of shape (n_benign,), one a request, finite.

        alpha: Promised rate, in (0, 1).

        dataset_sha256: Digest of the data set they came from.

    Raises:
        ValueError: *alpha* is not in (0, 1), a statistic is not finite, or there
            are too few of them for *alpha*.
    """
    statistics = np.asarray(benign_statistics, dtype=np.float64)
    n, needed = len(statistics), n_benign_needed(alpha)
    if not np.isfinite(statistics).all():
        raise ValueError("benign_statistics: expected finite numbers, got NaN or inf")
    if n < needed:
        raise ValueError(
            f"benign_statistics: alpha {alpha} needs at least {needed} benign "
            f"requests, got {n}"
        )
    k = math.ceil((n + 1) * (1 - _exactly(alpha)))
    threshold = float(np.sort(statistics)[k - 1])
    return Calibration(
        threshold=threshold,
        alpha=alpha,
        n_benign=n,
        n_flagged_benign=int((statistics > threshold).sum()),
        dataset_sha256=dataset_sha256,
    )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number in (0, 1), got {alpha}")


def _exactly(alpha: float) -> Fraction:
    # As written: 0.01 is one hundredth, or 99 requests would be one too few.
    return Fraction(repr(float(alpha)))
