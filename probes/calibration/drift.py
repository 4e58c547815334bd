# The reference does not move: a test that learnt from the traffic would learn the drift
# (Shaer et al. 2026). Its p-values are then only as uniform as the reference is large,
# and after enough requests any test would find that out. So the bets are not against
# "p <= u has probability u" but against the most that a reference of this size allows.
"""Whether traffic still looks like what the calibration rests on."""

import math

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64
from probes.calibration.record import Calibration
from probes.calibration.tails import rate_bound

LEVELS = (0.02, 0.1, 0.3, 0.5)
"""p-values at or below these are bet on."""

_STAKES = (0.05, 0.25)
"""Shares of the capital that a bet puts in."""

_RISK = 1e-3
"""The probability of a reference so odd that a detector's test is not valid."""


class DriftTest:
    """
    A test martingale for each detector, on p-values of ended requests.

    It bets that p-values from above, or from below, are at most a level more often
    than benign traffic allows. The capital starts at 1; while traffic is exchangeable
    with the reference it ever reaches c with a probability of at most 1/c (Ville
    1939), and `_RISK` for the reference itself. A share of it is kept back for later
    bets, 1 / (t (t + 1)) from the t-th request on, so that a drift that begins late
    is found at the cost of a factor of t squared, and not never.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        n_detectors = len(calibration.detectors)
        # Detector, side, level, stake.
        shape = (n_detectors, 2, len(LEVELS), len(_STAKES))
        self._staked: Float64 = np.zeros(shape)
        self._n_seen = 0
        counts = np.diff(calibration.reference_offsets).tolist()
        risk = _RISK / (2 * len(LEVELS) * len(counts))
        self._bounds = np.array([[_bound(u, n, risk) for u in LEVELS] for n in counts])

    @property
    def capital(self) -> Float64:
        """Of each detector's test, (n_detectors,)."""
        kept_back = 1 / (self._n_seen + 1)
        capital: Float64 = np.minimum(
            self._staked.mean(axis=(1, 2, 3)) + kept_back, _MOST
        )
        return capital

    def observe(self, peaks: Float64, bin_index: int) -> None:
        """Take in the peaks (n_detectors,) of one request that ended in a bin."""
        sides = self._calibration.two_sided(peaks, bin_index)
        if np.isnan(sides).any():
            return
        is_hit: NDArray[np.bool_] = sides[:, :, None] <= np.array(LEVELS)
        gain = is_hit / self._bounds[bin_index] - 1
        factors = 1 + np.array(_STAKES) * gain[..., None]
        self._n_seen += 1
        fresh = 1 / (self._n_seen * (self._n_seen + 1))
        # Bounded, so that what is certain stays a number.
        self._staked = np.minimum((self._staked + fresh) * factors, _MOST)


_MOST = 1e30


def _bound(level: float, n: int, risk: float) -> float:
    """The most that ``P(p <= level)`` can be, given a reference of *n*, but *risk*."""
    n_above = math.floor(level * (n + 1))
    if not n_above:
        return 1.0
    return rate_bound(n_above, n, risk)
