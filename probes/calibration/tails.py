"""What a finite reference says about a rank: no SciPy, since serving needs it."""

import math

import numpy as np

_N_HALVINGS = 60


def rate_bound(n_above: int, n: int, risk: float) -> float:
    """
    A bound of the rate beyond the *n_above*-th highest of *n* draws.

    That rate is Beta(n_above, n + 1 - n_above): it is above the bound with probability
    *risk* over the draws. The upper quantile, by bisection of
    ``P(Binomial(n, rate) < n_above) = risk``.

    >>> round(rate_bound(1, 299, 0.05), 6)
    0.009969
    """
    if n_above > n:
        return 1.0
    k = np.arange(n_above)
    log_factorials = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    log_choices = log_factorials[n] - log_factorials[k] - log_factorials[n - k]
    low, high = 0.0, 1.0
    for _ in range(_N_HALVINGS):
        rate = (low + high) / 2
        if not 0 < rate < 1:
            break
        terms = log_choices + k * math.log(rate) + (n - k) * math.log1p(-rate)
        if np.exp(terms).sum() > risk:
            low = rate
        else:
            high = rate
    return high
