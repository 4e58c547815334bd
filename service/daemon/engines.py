"""Which engines are connected, and when each was last heard of."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_REFUSED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneEngine:
    """An engine that has no stream any more, and whether it said that it stops."""

    name: str
    last_heard: float
    said_goodbye: bool


@dataclass(slots=True)
class _Engine:
    last_heard: float
    said_goodbye: bool = False
    n_streams: int = 0
    last_step: int = 0
    is_proven: bool = True


class Engines:
    """
    Kept by the ingest thread. Times are of one clock that never goes back. An engine
    counts from its first stream on.

    An engine without a stream is remembered until it is taken by `take_gone`.
    """

    def __init__(self) -> None:
        self._engines: dict[str, _Engine] = {}
        self._refused: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.has_ever_connected = False

    @property
    def n_connected(self) -> int:
        """Engines with an open stream."""
        return sum(engine.n_streams > 0 for engine in self._engines.values())

    @property
    def broken_off(self) -> list[str]:
        """Engines whose stream broke, and that have not come back yet."""
        return [
            name
            for name, engine in self._engines.items()
            if not (engine.n_streams or engine.said_goodbye)
        ]

    @property
    def is_proven(self) -> bool:
        """Whether every connected engine's tap wrote its rows when last tried."""
        return all(e.is_proven for e in self._engines.values() if e.n_streams)

    @property
    def last_steps(self) -> Mapping[str, int]:
        """The last step of each engine."""
        return {name: engine.last_step for name, engine in self._engines.items()}

    def hear(
        self,
        name: str,
        now: float,
        *,
        step: int | None = None,
        is_proven: bool | None = None,
    ) -> None:
        """Note a message of an engine that has, or had, a stream."""
        engine = self._engines[name]
        engine.last_heard = now
        if step is not None:
            engine.last_step = max(step, engine.last_step)
        if is_proven is not None:
            engine.is_proven = is_proven

    def connect(self, name: str, now: float) -> None:
        """Note that an engine opened a stream."""
        self._engines.setdefault(name, _Engine(now))
        self.hear(name, now)
        self._engines[name].n_streams += 1
        self._engines[name].said_goodbye = False
        self.has_ever_connected = True

    def refuse(self, name: str, reason: str, now: float) -> bool:
        """Note that an engine was turned away; return whether that is news."""
        before = self._refused.pop(name, ("", now))
        self._refused[name] = (reason, now)
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)
        return before[0] != reason

    def accept(self, name: str) -> None:
        """Note that an engine was let in."""
        self._refused.pop(name, None)

    def refusal(self, since: float) -> str:
        """Return why the last engine turned away *since* then was, or ""."""
        reason, at = next(reversed(self._refused.values()), ("", since))
        return reason if at >= since else ""

    def say_goodbye(self, name: str, now: float) -> None:
        """Note that an engine stops."""
        self.hear(name, now)
        self._engines[name].said_goodbye = True

    def disconnect(self, name: str, now: float) -> None:
        """Note that a stream of an engine ended."""
        self.hear(name, now)
        self._engines[name].n_streams -= 1

    def silent_seconds(self, now: float) -> dict[str, float]:
        """Return, by connected engine, the time since it was last heard of."""
        return {
            name: now - engine.last_heard
            for name, engine in self._engines.items()
            if engine.n_streams
        }

    def take_gone(self, heard_before: float) -> list[GoneEngine]:
        """Forget and return the engines without a stream, last heard before then."""
        gone = [
            GoneEngine(
                name=name,
                last_heard=engine.last_heard,
                said_goodbye=engine.said_goodbye,
            )
            for name, engine in self._engines.items()
            if not engine.n_streams and engine.last_heard < heard_before
        ]
        for engine in gone:
            del self._engines[engine.name]
        return gone
