"""Keeps the number of a metric's series below a bound, whatever its label values."""

from collections.abc import Callable
from typing import Generic, TypeVar

from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

OTHER = "other"
"""Every label's value in the one series that stands for all that had no room."""

_T = TypeVar("_T", bound=MetricWrapperBase)


def _never(_values: tuple[str, ...]) -> bool:
    return False


class BoundedLabels(Generic[_T]):
    """
    At most *n_most* label sets of *metric*, and one more for what has no room.

    A label set that `may_forget` makes room, the oldest first: its series ends, as if
    the daemon had restarted. Used by one thread.

    Attributes:
        may_forget: Whether the label set with these values may give way.
    """

    def __init__(self, metric: _T, n_most: int, folded: Counter) -> None:
        """*folded* counts, by the metric's name, the looks that found no room."""
        self._metric = metric
        self._n_most = n_most
        self._folded = folded
        self._known: dict[tuple[str, ...], _T] = {}
        self.may_forget: Callable[[tuple[str, ...]], bool] = _never

    def of(self, *values: str) -> _T:
        """Return the child for *values*, or that for `OTHER`."""
        child = self._known.get(values) or self._add(values)
        if child is not None:
            return child
        self._folded.inc()
        return self._metric.labels(*[OTHER] * len(values))

    def add(self, *values: str) -> None:
        """Export *values* from now on, if there is room without ending a series."""
        if values not in self._known and len(self._known) < self._n_most:
            self._add(values)

    def make_room(self, n_sets: int) -> None:
        """End series that may be forgotten, the oldest first, for *n_sets* new ones."""
        while len(self._known) > max(0, self._n_most - n_sets) and self._forget():
            pass

    def remove_where(self, is_gone: Callable[[tuple[str, ...]], bool]) -> None:
        """End the series of the label sets that *is_gone* says."""
        for values in [values for values in self._known if is_gone(values)]:
            del self._known[values]
            self._metric.remove(*values)

    def _add(self, values: tuple[str, ...]) -> _T | None:
        if len(self._known) >= self._n_most and not self._forget():
            return None
        self._known[values] = child = self._metric.labels(*values)
        return child

    def _forget(self) -> bool:
        oldest = next((v for v in self._known if self.may_forget(v)), None)
        if oldest is None:
            return False
        del self._known[oldest]
        self._metric.remove(*oldest)
        return True
