"""Swaps in any order, engines that lag, leave and come back: no request is lost."""

from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from monitor.core import Monitor
from monitor.records import RequestSummary, StepBatch
from probes.aggregate import EMAMax
from probes.bank import ProjectionBank
from probes.bundle import Bundle
from service.daemon.audit.records import Event
from service.daemon.detector_sets import DetectorSets, SwapError
from service.daemon.items import ChangeItem, ChangeKind, StreamStart
from service.daemon.loaded_set import LoadedSet
from service.daemon.restoring import Restored
from service.daemon.swaps import Swaps
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import D_MODEL, EARLY, Rows, batch, probe
from tests.service.builders import bundle, hello
from tests.service.swapping import make_bundle

BUNDLES: dict[str, Bundle] = {
    "a": bundle(),
    "b": make_bundle("b"),
    "c": make_bundle("c", detectors=[probe("ema", EARLY, 0, EMAMax(alpha=0.25))]),
}
ENGINES = ("one", "two")


def loaded(name: str) -> LoadedSet:
    """The set *name*, as if it had been read."""
    found = BUNDLES[name]
    return LoadedSet(
        name=name,
        path=Path("/", name),
        bundle=found,
        bank=ProjectionBank.compile(found.detectors),
    )


def monitor_of(one: LoadedSet) -> Monitor:
    return Monitor(
        one.bank,
        one.bundle.detectors,
        one.bundle.calibration,
        bundle_digest=one.digest,
    )


def computed(sent: StepBatch, bank: pb.Bank) -> StepBatch:
    """The columns that an engine makes of *sent* with *bank*."""
    columns = {}
    for part in bank.slices:
        weight = np.frombuffer(part.weight, "<f4").reshape(-1, D_MODEL)
        bias = np.frombuffer(part.bias, "<f4")
        columns[part.hook_point] = sent.activations[part.hook_point] @ weight.T + bias
    return replace(
        sent,
        bank_digest=bank.digest,
        columns=columns,
        activations={},
        squared_norms={h: sent.squared_norms[h] for h in columns},
    )


@dataclass
class FakeEngine:
    """Computes on its own time; what it makes waits until it is delivered."""

    name: str
    bank: pb.Bank
    handed: str
    orders: SimpleQueue[pb.StreamResponse | None] = field(default_factory=SimpleQueue)
    outbox: deque[StepBatch | str] = field(default_factory=deque)
    is_connected: bool = False
    n_banks_missed: int = 0
    n_steps: int = 0
    running: dict[str, int] = field(default_factory=dict)


class Traffic:
    """
    Two engines, three sets, and everything that may come in between.

    Only an engine that was away for more than one new bank may lose anything: nobody
    computes the columns any more that its requests began with.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        first = loaded("a")
        self.monitor = monitor_of(first)
        self.swaps = Swaps(
            self.monitor,
            Restored(
                state=DetectorSets.first(first.facts),
                loaded={"a": first},
                configured=first.digest,
            ),
        )
        offer = self.swaps.offer
        self.engines = {
            name: FakeEngine(name, offer.message, offer.bank.digest) for name in ENGINES
        }
        self.seed = 0
        self.left_behind: set[tuple[str, str]] = set()
        self.pieces: dict[tuple[str, str], list[list[float]]] = {}
        for engine in self.engines.values():
            self.connect(engine)

    def connect(self, engine: FakeEngine) -> None:
        if engine.n_banks_missed > 1:
            self.left_behind |= {key for key in self.pieces if key[0] == engine.name}
        engine.n_banks_missed = 0
        offer = self.swaps.offer
        engine.bank, engine.handed = offer.message, offer.bank.digest
        engine.orders, engine.is_connected = SimpleQueue(), True
        start = StreamStart(
            engine=engine.name,
            rank=0,
            ranks=(0,),
            hello=hello(engine.name),
            bank_digest=engine.handed,
            answers=engine.orders,
        )
        assert [] == self.swaps.open_stream(start)

    def change(self, kind: ChangeKind, name: str) -> None:
        before = self.swaps.offer.bank.digest
        item = ChangeItem(
            kind=kind,
            by="test",
            reply=SimpleQueue(),
            name=name,
            loaded=loaded(name) if kind is ChangeKind.LOAD else None,
        )
        with suppress(SwapError):
            self.note(self.swaps.change(item))
        if self.swaps.offer.bank.digest != before:
            for engine in self.engines.values():
                engine.n_banks_missed += not engine.is_connected

    def take_order(self, name: str) -> None:
        engine = self.engines[name]
        while not engine.orders.empty():
            order = engine.orders.get()
            assert order is not None
            engine.bank = order.bank

    def step(self, name: str, n_rows: list[int], n_new: int, n_ended: int) -> None:
        engine = self.engines[name]
        engine.n_steps += 1
        for _ in range(n_new):
            engine.running[f"r{len(self.pieces)}"] = 0
            self.pieces[name, f"r{len(self.pieces)}"] = []
        rows = []
        for request, n in zip(list(engine.running), n_rows, strict=False):
            self.seed += 1
            rng = np.random.default_rng(self.seed)
            values = rng.normal(0, 1.2, (n, D_MODEL)).tolist()
            rows.append(Rows(request, engine.running[request], values))
            engine.running[request] += n
            self.pieces[name, request] += values
        ended = tuple(r.request_id for r in rows[:n_ended])
        for request in ended:
            del engine.running[request]
        sent = batch(
            *rows,
            step=engine.n_steps,
            engine=name,
            finished=ended,
            holds_activations=True,
        )
        engine.outbox.append(computed(sent, engine.bank))

    def deliver(self, name: str, n: int) -> None:
        engine = self.engines[name]
        if not engine.is_connected:
            return
        for _ in range(min(n, len(engine.outbox))):
            sent = engine.outbox.popleft()
            assert isinstance(sent, StepBatch)
            sent = self.monitor.sets.cut(sent)
            self.note(self.swaps.hear(engine.orders, sent.bank_digest))
            self.monitor.observe(sent)
            for _, summary in self.monitor.end(name, sent.finished):
                self.check(engine, summary)
        if not engine.outbox:  # As the plugin does when nothing else is to be sent.
            self.note(self.swaps.hear(engine.orders, engine.bank.digest))

    def leave_or_come_back(self, name: str) -> None:
        engine = self.engines[name]
        if engine.is_connected:
            engine.is_connected = False
            self.note(self.swaps.close_stream(engine.orders))
        else:
            self.connect(engine)

    def note(self, events: list[Event]) -> None:
        self.counts.update(event.kind for event in events)

    def check(self, engine: FakeEngine, summary: RequestSummary) -> None:
        """Nothing of it is lost, and it is what its set alone says of it."""
        values = self.pieces[engine.name, summary.request_id]
        if (engine.name, summary.request_id) in self.left_behind:
            self.counts["skipped"] += 1
            return
        self.counts["checked"] += 1
        assert {} == summary.n_tokens_lost
        assert len(values) == summary.n_tokens_scored
        own = next(n for n, b in BUNDLES.items() if b.digest == summary.bundle_digest)
        self.counts[f"scored by {own}"] += 1
        alone = monitor_of(loaded(own))
        sent = batch(Rows("x", 0, values), engine="alone", holds_activations=True)
        alone.observe(alone.sets.cut(sent))
        _, offline = alone.finish("alone", "x")
        np.testing.assert_allclose(
            list(summary.statistics.values()),
            list(offline.statistics.values()),
            rtol=1e-5,
            atol=1e-6,
        )

    def every_token_is_counted_once(self) -> None:
        assert self.monitor.totals.tokens.is_balanced

    def what_is_saved_can_be_gone_on_with(self) -> None:
        saved = self.swaps.saved()
        names = {one.name for one in saved.sets}
        assert saved.roles["live"] in names
        assert {r for r in saved.roles.values() if r} <= names

    def run(self, rng: np.random.Generator) -> None:
        """Let one thing happen."""
        name = ENGINES[int(rng.integers(2))]
        what = rng.choice(
            ["step", "deliver", "order", "change", "leave", "tick"],
            p=[0.33, 0.33, 0.11, 0.12, 0.08, 0.03],
        )
        if what == "step":
            n_rows = rng.integers(1, 5, 3).tolist()
            self.step(name, n_rows, int(rng.integers(3)), int(rng.integers(3)))
        elif what == "deliver":
            self.deliver(name, int(rng.integers(1, 9)))
        elif what == "order":
            self.take_order(name)
        elif what == "change":
            kind = list(ChangeKind)[int(rng.integers(len(ChangeKind)))]
            self.change(kind, "abc"[int(rng.integers(3))])
        elif what == "leave":
            self.leave_or_come_back(name)
        else:
            self.note(self.swaps.advance())
        self.every_token_is_counted_once()
        self.what_is_saved_can_be_gone_on_with()


def test_no_request_is_lost_or_mixed() -> None:
    """
    Each request is scored whole by one set, whatever happened while it ran.
    """
    counts: Counter[str] = Counter()
    for seed in range(3):
        traffic = Traffic()
        rng = np.random.default_rng(seed)
        for _ in range(1000):
            traffic.run(rng)
        counts += traffic.counts

    assert counts["detectors_live"] >= 20, counts
    assert counts["checked"] >= 500, counts
    assert min(counts[f"scored by {name}"] for name in BUNDLES) >= 30, counts
    assert counts["skipped"] < 100, counts


def test_what_is_still_on_its_way_holds_up_the_next_swap() -> None:
    """
    A bank without the old set's columns is not ordered while an engine that was away
    may still bring requests of it, nor while those run.
    """
    traffic = Traffic()

    def promote(name: str) -> None:
        kind, reply = ChangeKind.PROMOTE, SimpleQueue[str]()
        item = ChangeItem(kind=kind, by="test", reply=reply, name=name)
        traffic.note(traffic.swaps.change(item))

    for name in ENGINES:
        traffic.deliver(name, 1)
    traffic.change(ChangeKind.LOAD, "b")
    traffic.change(ChangeKind.LOAD, "c")
    traffic.leave_or_come_back("two")
    traffic.step("two", [2], 1, 0)
    promote("b")
    traffic.take_order("one")
    traffic.deliver("one", 1)
    assert 1 == traffic.counts["detectors_live"]
    traffic.leave_or_come_back("two")

    with pytest.raises(SwapError, match="engine two has not yet sent a step"):
        promote("c")
    traffic.deliver("two", 1)
    with pytest.raises(SwapError, match="a: requests that began under it still run"):
        promote("c")
    traffic.step("two", [1], 0, 1)
    traffic.deliver("two", 1)
    promote("c")

    assert (1, 1) == (traffic.counts["checked"], traffic.counts["scored by a"])
