"""The streams that engines have open, and which bank each computes."""

from collections.abc import Callable
from dataclasses import dataclass

from service.daemon.detector_sets import Taps
from service.daemon.items import Answers, StreamStart
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_NO_LIMIT = 1 << 31
"""Columns of an engine that sends activations: all are made here."""


@dataclass(slots=True, kw_only=True)
class OpenStream:
    """
    One engine's stream.

    Attributes:
        hello: What the engine said of itself.

        bank_digest: Of the bank that it computed when last heard of.
    """

    engine: str
    hello: pb.HelloRequest
    answers: Answers
    bank_digest: str = ""

    @property
    def is_pushdown(self) -> bool:
        """Whether the engine computes a bank."""
        return self.hello.mode == pb.CAPTURE_MODE_PUSHDOWN

    @property
    def taps(self) -> Taps:
        """What the engine taps."""
        return Taps(
            engine=self.engine,
            hook_points=frozenset(self.hello.hook_points),
            k_max=self.hello.k_max if self.is_pushdown else _NO_LIMIT,
        )


class Streams:
    """Kept by the ingest thread. A stream is known by where its answers go."""

    def __init__(self) -> None:
        self._streams: dict[int, OpenStream] = {}

    def open(self, item: StreamStart) -> OpenStream:
        """Note that an engine opened a stream."""
        stream = OpenStream(engine=item.engine, hello=item.hello, answers=item.answers)
        self._streams[id(item.answers)] = stream
        return stream

    def close(self, answers: Answers) -> None:
        """Note that a stream ended."""
        self._streams.pop(id(answers), None)

    def hear(self, answers: Answers, bank_digest: str) -> None:
        """Note which bank an engine says that it computes; "" says nothing."""
        stream = self._streams.get(id(answers))
        if stream is not None and bank_digest:
            stream.bank_digest = bank_digest

    def all(self) -> list[OpenStream]:
        """Return every stream, oldest first."""
        return list(self._streams.values())

    def taps(self) -> list[Taps]:
        """Return what each engine with a stream taps."""
        return [stream.taps for stream in self._streams.values()]

    def lacking(self, is_held: Callable[[str], bool]) -> list[str]:
        """Return the engines whose bank, by its digest, *is_held* says no to."""
        engines = [
            stream.engine
            for stream in self._streams.values()
            if stream.is_pushdown and not is_held(stream.bank_digest)
        ]
        return list(dict.fromkeys(engines))

    def digest_of(self, answers: Answers) -> str:
        """Return what the engine of a stream computed when last heard of."""
        stream = self._streams.get(id(answers))
        return "" if stream is None else stream.bank_digest

    def send(self, order: pb.StreamResponse) -> None:
        """Give *order* to every engine that computes a bank."""
        for stream in self._streams.values():
            if stream.is_pushdown:
                stream.answers.put(order)
