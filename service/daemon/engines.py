"""Which engines are connected, and when each was last heard of."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_MAX_REFUSED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneEngine:
    """An engine that has no stream any more, and whether it said that it stops."""

    name: str
    last_heard: float
    said_goodbye: bool


@dataclass(slots=True)
class _Rank:
    last_heard: float
    said_goodbye: bool = False
    n_streams: int = 0
    is_proven: bool = True


@dataclass(slots=True)
class _Engine:
    ranks: dict[int, _Rank] = field(default_factory=dict)
    last_step: int = 0

    @property
    def last_heard(self) -> float:
        return max(rank.last_heard for rank in self.ranks.values())

    @property
    def said_goodbye(self) -> bool:
        return all(rank.said_goodbye for rank in self.ranks.values())

    @property
    def connected(self) -> dict[int, _Rank]:
        return {number: rank for number, rank in self.ranks.items() if rank.n_streams}


class Engines:
    """
    Kept by the ingest thread. Times are of one clock that never goes back. An engine
    counts from its first stream on; each of its ranks has streams of its own.

    An engine without a stream is remembered until it is taken by `take_gone`.
    """

    def __init__(self) -> None:
        self._engines: dict[str, _Engine] = {}
        self._refused: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.has_ever_connected = False

    @property
    def n_connected(self) -> int:
        """Engines with an open stream."""
        return sum(bool(engine.connected) for engine in self._engines.values())

    @property
    def broken_off(self) -> list[str]:
        """Engines with a rank whose stream broke, and that has not come back yet."""
        return [
            name
            for name, engine in self._engines.items()
            if any(not (r.n_streams or r.said_goodbye) for r in engine.ranks.values())
        ]

    @property
    def is_proven(self) -> bool:
        """Whether every connected engine's tap wrote its rows when last tried."""
        return all(
            rank.is_proven
            for engine in self._engines.values()
            for rank in engine.connected.values()
        )

    @property
    def last_steps(self) -> Mapping[str, int]:
        """The last step of each engine."""
        return {name: engine.last_step for name, engine in self._engines.items()}

    def hear(self, name: str, rank: int, now: float) -> None:
        """Note a message of a rank that has, or had, a stream."""
        self._engines[name].ranks[rank].last_heard = now

    def prove(self, name: str, rank: int, is_proven: bool) -> None:
        """Note whether the tap of a rank wrote its rows when last tried."""
        self._engines[name].ranks[rank].is_proven = is_proven

    def see_step(self, name: str, step: int) -> None:
        """Note that all ranks of an engine, if it is not gone, told of *step*."""
        engine = self._engines.get(name)
        if engine is not None:
            engine.last_step = max(step, engine.last_step)

    def connect(self, name: str, rank: int, now: float) -> None:
        """Note that a rank opened a stream."""
        engine = self._engines.setdefault(name, _Engine())
        known = engine.ranks.setdefault(rank, _Rank(now))
        known.last_heard = now
        known.n_streams += 1
        known.said_goodbye = False
        self.has_ever_connected = True

    def missing(self, ranks: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """
        Return which of an engine's *ranks* have no stream, while another has one.

        Those that said goodbye are not missed: the others are about to.
        """
        missing = {}
        for name, expected in ranks.items():
            engine = self._engines.get(name)
            if engine is None or not engine.connected:
                continue
            here = {n for n, r in engine.ranks.items() if r.n_streams or r.said_goodbye}
            if away := [rank for rank in expected if rank not in here]:
                missing[name] = away
        return missing

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

    def say_goodbye(self, name: str, rank: int) -> None:
        """Note that a rank stops."""
        self._engines[name].ranks[rank].said_goodbye = True

    def disconnect(self, name: str, rank: int, now: float) -> None:
        """Note that a stream of a rank ended."""
        self.hear(name, rank, now)
        self._engines[name].ranks[rank].n_streams -= 1

    def silent_seconds(self, now: float) -> dict[str, float]:
        """Return, by connected engine, how long a rank was not heard of, the most."""
        return {
            name: max(now - rank.last_heard for rank in engine.connected.values())
            for name, engine in self._engines.items()
            if engine.connected
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
            if not engine.connected and engine.last_heard < heard_before
        ]
        for engine in gone:
            del self._engines[engine.name]
        return gone
