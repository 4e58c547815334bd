"""A bounded share of false ones among the flagged requests of a whole stream."""

import math


class ELond:
    """
    e-LOND: online control of the false discovery rate under any dependence.

    Request t is a discovery if its e-value is at least ``1 / (rate gamma_t (R + 1))``,
    with R discoveries before it and ``gamma_t = 1 / log2(t + 1) - 1 / log2(t + 2)``,
    which is 1 in sum (Xu and Ramdas 2024, arXiv 2311.06412, algorithm 1). Then the
    expected share of benign requests among the discoveries is at most *rate*, however
    the requests depend on each other.
    """

    def __init__(self, rate: float) -> None:
        if not 0 < rate < 1:
            raise ValueError(f"rate: expected a number in (0, 1), got {rate}")
        self._rate = rate
        self.n_seen = 0
        self.n_discoveries = 0

    def is_discovery(self, p_value: float) -> bool:
        """Judge the next request by its *p_value*, in (0, 1]."""
        self.n_seen += 1
        t = self.n_seen
        gamma = 1 / math.log2(t + 1) - 1 / math.log2(t + 2)
        level = self._rate * gamma * (self.n_discoveries + 1)
        if e_value(p_value) * level < 1:
            return False
        self.n_discoveries += 1
        return True


def e_value(p_value: float) -> float:
    """
    An e-value from a p-value: ``(1 - p + p ln p) / (p ln(p)^2)``.

    The average of the calibrators ``k p^(k-1)`` over k in (0, 1) (Vovk and Wang 2021,
    arXiv 1912.06116, equation 1); 1/2 at p = 1.

    >>> round(e_value(0.001), 2), e_value(1.0)
    (20.79, 0.5)
    """
    if not 0 < p_value <= 1:
        raise ValueError(f"p_value: expected a number in (0, 1], got {p_value}")
    log = math.log(p_value)
    if log > -1e-4:  # The limit; the formula cancels here.
        return 0.5
    return (1 - p_value + p_value * log) / (p_value * log**2)
