"""All sinks of one daemon, as far as the ingest thread knows of them."""

from collections.abc import Sequence

from service.daemon.drills import Drill, Drills
from service.daemon.sinks.follower import FollowerSink


class Sinks:
    """
    Any number of sinks, none of which can hold up another.

    Attributes:
        drills: What became of the drills that were announced.
    """

    def __init__(self, sinks: Sequence[FollowerSink], drills: Drills) -> None:
        self._sinks = tuple(sinks)
        self.drills = drills

    @property
    def names(self) -> list[str]:
        """What each is called in the metrics."""
        return [sink.name for sink in self._sinks]

    def start(self) -> None:
        """Start each; see `FollowerSink.start`."""
        for sink in self._sinks:
            sink.start()

    def announce(self, drills: Sequence[Drill]) -> None:
        """Say that the record has more flags, or *drills*. Returns at once."""
        for drill in drills:
            self.drills.begin(drill)
        for sink in self._sinks:
            sink.announce(drills)

    def stop(self, seconds: float) -> bool:
        """End each within *seconds*; False if one did not."""
        for sink in self._sinks:
            sink.end()
        is_ended = [sink.join(seconds) for sink in self._sinks]
        return all(is_ended)
