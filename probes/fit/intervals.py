"""How many benign requests a promise needs, and what a count says about a rate."""

import math
from fractions import Fraction

from scipy.special import bdtr, betaincinv

from probes.calibration.record import check_alpha


def clopper_pearson(
    n_flagged: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """
    The exact interval of a rate of which *n_flagged* of *n* were seen.

    Clopper and Pearson 1934, two-sided. Of nothing seen it is (0, 1).

    >>> low, high = clopper_pearson(1, 100)
    >>> round(low, 5), round(high, 5)
    (0.00025, 0.05446)
    """
    tail = (1 - confidence) / 2
    low, high = 0.0, 1.0
    if n_flagged:
        low = float(betaincinv(n_flagged, n - n_flagged + 1, tail))
    if n_flagged < n:
        high = float(betaincinv(n_flagged + 1, n - n_flagged, 1 - tail))
    return low, high


def n_benign_needed(alpha: float | Fraction, confidence: float = 0.0) -> int:
    """
    The fewest benign requests that a promise of *alpha* can rest on.

    Marginal: ceil(1 / alpha) - 1. With a *confidence*: the least n with
    ``(1 - alpha)^n <= 1 - confidence``, so that not even the highest of them is
    likely to be below the boundary that is sought.

    >>> n_benign_needed(0.01), n_benign_needed(0.01, 0.95)
    (99, 299)
    """
    share = exactly(alpha)
    check_alpha(float(share))
    if confidence:
        return math.ceil(math.log1p(-confidence) / math.log1p(-float(share)))
    return math.ceil(1 / share) - 1


def smallest_alpha(n_benign: int, confidence: float = 0.0) -> float:
    """
    The least rate that *n_benign* requests can promise: `n_benign_needed` inverted.

    >>> smallest_alpha(99), round(smallest_alpha(299, 0.95), 5)
    (0.01, 0.00997)
    """
    if confidence:
        return -math.expm1(math.log1p(-confidence) / n_benign)
    return 1 / (n_benign + 1)


def n_allowed_above(n: int, alpha: float | Fraction, confidence: float = 0.0) -> int:
    """
    How many of *n* benign requests may be above a boundary that promises *alpha*.

    Marginal: split conformal, ``n - ceil((n + 1)(1 - alpha))`` (Vovk et al. 2005;
    Angelopoulos and Bates 2021, arXiv 2107.07511, theorem 1). With a *confidence*: the
    rate beyond the m-th highest of n is above alpha with the probability that a
    binomial of n and alpha is below m (Vovk 2012, arXiv 1209.2673, proposition 2).

    Raises:
        ValueError: There are too few for either.
    """
    share = exactly(alpha)
    needed = n_benign_needed(share, confidence)
    if n < needed:
        raise ValueError(
            f"expected at least {needed} benign requests for a share of "
            f"{float(share):g}, got {n}"
        )
    if not confidence:
        return n - math.ceil((n + 1) * (1 - share))
    n_above = 0
    while bdtr(n_above + 1, n, float(share)) <= 1 - confidence:
        n_above += 1
    return n_above


def exactly(alpha: float | Fraction) -> Fraction:
    """*alpha* as written: 0.01 is one hundredth, or 99 requests were one too few."""
    return alpha if isinstance(alpha, Fraction) else Fraction(repr(float(alpha)))
