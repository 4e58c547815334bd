"""Remembers the requests that ended, so that nothing of them counts twice."""

from collections import OrderedDict
from dataclasses import dataclass, replace

_MAX_ENDED = 65536  # Some 20 MB.

Key = tuple[str, str]
"""Engine and request id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """
    What is left of a request after its end.

    Attributes:
        step: The engine's last step when it ended.

        next_position: Positions below it are counted.

        is_end_seen: False if it was abandoned: it may go on.

        flagged: Detectors that flagged it.
    """

    step: int
    next_position: int
    is_end_seen: bool
    flagged: frozenset[str] = frozenset()


class EndedRequests:
    """The requests that ended last."""

    def __init__(self) -> None:
        self._ended: OrderedDict[Key, Ended] = OrderedDict()

    def remember(self, key: Key, ended: Ended) -> None:
        """Keep *ended*, and forget the oldest if there are too many."""
        self._ended[key] = ended
        self._ended.move_to_end(key)
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)

    def of(self, key: Key) -> Ended | None:
        """Return what is remembered of *key*."""
        return self._ended.get(key)

    def abandoned(self, key: Key) -> Ended | None:
        """Return what is remembered of *key*, if nobody saw its end."""
        ended = self._ended.get(key)
        return None if ended is None or ended.is_end_seen else ended

    def see_end(self, key: Key) -> None:
        """Note that an abandoned request ended after all, with nothing more."""
        self._ended[key] = replace(self._ended[key], is_end_seen=True)

    def forget(self, key: Key) -> None:
        """Forget *key*: it lives again."""
        self._ended.pop(key, None)
