# Rule 1: one thread, the one that owns the monitor, changes anything here. `offer` and
# `view` are replaced as wholes, and any thread may read them.
#
# Rule 2: a set goes live when what every connected engine computes holds its columns,
# not before: then no request begins that it could not score.
#
# Rule 3: engines are told a new bank only when the one that they compute lacks a
# column that is wanted. What nobody wants any more leaves with the next swap.
"""Changes the detector sets of a running daemon: what is loaded, live and computed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from monitor.core import Monitor
from monitor.set_scores import ShadowTally
from probes.bank_union import BankUnion, UnionLayout
from probes.errors import ArtifactError
from service.daemon.audit.records import Event
from service.daemon.detector_sets import DetectorSets, SetState, SwapError
from service.daemon.hello import MalformedHello, UnfitEngine, check_hello
from service.daemon.items import (
    Answers,
    BankRefusalItem,
    ChangeItem,
    ChangeKind,
    StreamStart,
)
from service.daemon.loaded_set import LoadedSet, Offer
from service.daemon.restoring import Restored
from service.daemon.saved_sets import ROLES, SavedSet, SavedSets
from service.daemon.streams import Streams
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_MAX_BANKS = 32
"""Banks that are remembered: a batch in flight was made with one of the last."""

log = logging.getLogger("innerwatch.swaps")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetView:
    """One detector set, as an operator sees it."""

    name: str
    digest: str
    state: SetState
    path: str
    n_detectors: int
    n_live_requests: int
    tally: ShadowTally | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapView:
    """
    Every set at one moment.

    Attributes:
        sets: The live one first.

        bank_digest: Of what engines are told to compute.

        waiting_for: Engines that do not compute it yet.

        problem: Why the last swap was called off; "" if it was not.
    """

    sets: tuple[SetView, ...]
    bank_digest: str
    waiting_for: tuple[str, ...]
    problem: str


class Swaps:
    """
    The sets of one daemon.

    Attributes:
        offer: What an engine that says Hello is checked against and given.

        is_changed: Whether `saved` is not on disk as it is now.
    """

    def __init__(self, monitor: Monitor, restored: Restored) -> None:
        """Go on with *restored*, whose live set is that of *monitor*."""
        self._monitor = monitor
        self._state = restored.state
        self._loaded = dict(restored.loaded)
        self._configured = restored.configured
        self._streams = Streams()
        self._problem = ""
        self._banks: dict[tuple[str, ...], str] = {}
        self._layouts: dict[str, UnionLayout] = {}
        self.is_changed = True
        digests = {one.digest: one for one in self._loaded.values()}
        for bank in (*((digest,) for digest in digests), *restored.banks):
            if bank and all(digest in digests for digest in bank):
                union = BankUnion.compile({d: digests[d].bank for d in bank})
                self._remember(bank, union)
        self.offer: Offer = self._last_offer(restored) or self._make_offer()
        self._remember_offer()
        self._compute()

    @property
    def live(self) -> LoadedSet:
        """The set that scores the requests that begin."""
        return self._loaded[self._state.live]

    @property
    def loaded(self) -> dict[str, LoadedSet]:
        """Every loaded set, by name."""
        return dict(self._loaded)

    def view(self) -> SwapView:
        """Copy what an operator may ask for."""
        order = [self._state.live, *(n for n in self._loaded if n != self._state.live)]
        return SwapView(
            sets=tuple(self._view_of(name) for name in order),
            bank_digest=self.offer.bank.digest,
            waiting_for=tuple(self._streams.lacking(self._holds_all)),
            problem=self._problem,
        )

    def saved(self) -> SavedSets:
        """Return what has to be on disk to go on from here."""
        return SavedSets(
            configured=self._configured,
            sets=tuple(
                SavedSet(name=n, path=str(one.path), digest=one.digest)
                for n, one in self._loaded.items()
            ),
            roles={role: getattr(self._state, role) for role in ROLES},
            banks=tuple(self._banks),
        )

    def change(self, item: ChangeItem) -> list[Event]:
        """
        Do what an operator asks for; return what the record has to say of it.

        Raises:
            SwapError: It can not be done, and nothing was changed.
        """
        kinds: dict[ChangeKind, Callable[[ChangeItem], str]] = {
            ChangeKind.LOAD: self._load,
            ChangeKind.UNLOAD: self._unload,
            ChangeKind.SHADOW: self._start_shadow,
            ChangeKind.PROMOTE: self._promote,
            ChangeKind.ROLL_BACK: self._roll_back,
        }
        said = kinds[item.kind](item)
        self._problem = ""
        kind = _EVENTS[item.kind]
        return [self._event(kind, f"{said}, by {item.by}"), *self.advance()]

    def open_stream(self, item: StreamStart) -> list[Event]:
        """An engine opened a stream: since its Hello there may be another bank."""
        stream = self._streams.open(item)
        if item.bank_digest == self.offer.bank.digest:
            return []
        if stream.is_pushdown:
            item.answers.put(self.offer.order)
        try:
            self.offer.check(item.hello)
        except (MalformedHello, UnfitEngine) as error:
            refusal = BankRefusalItem(
                engine=item.engine,
                rank=item.rank,
                digest=self.offer.bank.digest,
                reason=str(error),
                answers=item.answers,
            )
            return self.refused(refusal)
        return []

    def close_stream(self, answers: Answers) -> list[Event]:
        """A stream ended: it is not waited for."""
        self._streams.close(answers)
        return self.advance()

    def hear(self, answers: Answers, bank_digest: str) -> list[Event]:
        """An engine said which bank it computes."""
        self._streams.hear(answers, bank_digest)
        return self.advance() if self._state.coming else []

    def refused(self, item: BankRefusalItem) -> list[Event]:
        """Call off what an engine can not compute."""
        said = f"engine {item.engine}: {item.reason}"
        if item.digest != self.offer.bank.digest:
            return [Event(kind="bank_refused", detail=said, engine=item.engine)]
        before = self._layouts.get(self._streams.digest_of(item.answers))
        blamed = [
            name
            for name in dict.fromkeys((self._state.coming, self._state.shadow))
            if name and not _holds(before, self._loaded[name].digest)
        ]
        if not blamed:
            return [Event(kind="bank_refused", detail=said, engine=item.engine)]
        self._problem = f"{' + '.join(blamed)}: called off: {said}"
        if self._state.coming in blamed:
            self._state = self._state.roll_back(())
        if self._state.shadow in blamed:
            self._state = self._state.without_shadow()
        self._order(self._make_offer())
        self._compute()
        return [self._event("swap_called_off", self._problem)]

    def advance(self) -> list[Event]:
        """Make live what has come, and forget what has ended."""
        events: list[Event] = []
        coming = self._state.coming
        if coming and not self._streams.lacking(lambda d: self._is_held(d, coming)):
            before = self.live
            self._state = self._state.arrived()
            now = self.live
            self._compute()
            said = f"{_called(now)}, before {_called(before)}"
            events.append(self._event("detectors_live", said))
        old = self._state.retiring
        if old and not self._n_requests(old):
            self._state = self._state.retired()
            said = _called(self._loaded[old])
            events.append(self._event("detectors_retired", said))
            self._compute()
        return events

    def _load(self, item: ChangeItem) -> str:
        new = item.loaded
        assert new is not None
        for stream in self._streams.all():
            self._check(stream.hello, new)
        self._state = self._state.load(new.facts, self._streams.taps())
        self._loaded[new.name] = new
        # Of ranks that differ in their bank for a step, this is what they have alike.
        self._remember((new.digest,), BankUnion.compile({new.digest: new.bank}))
        self._remember_offer()
        return f"{_called(new)} from {new.path}"

    def _unload(self, item: ChangeItem) -> str:
        self._check_idle(item.name)
        self._state = self._state.unload(item.name)
        gone = self._loaded.pop(item.name)
        self._compute()
        return _called(gone)

    def _start_shadow(self, item: ChangeItem) -> str:
        self._go_to(self._state.start_shadow(item.name, self._streams.taps()))
        return _called(self._loaded[item.name])

    def _promote(self, item: ChangeItem) -> str:
        self._go_to(self._state.promote(item.name, self._streams.taps()))
        return _called(self._loaded[item.name])

    def _roll_back(self, item: ChangeItem) -> str:
        before = self._state
        self._go_to(self._state.roll_back(self._streams.taps()))
        if before.coming:
            return f"{_called(self._loaded[before.coming])} withdrawn"
        return f"to {_called(self._loaded[self._state.coming])}"

    def _go_to(self, state: DetectorSets) -> None:
        """Take *state* on, with the bank that it needs; or change nothing."""
        for name in state.computed:
            for stream in self._streams.all():
                self._check(stream.hello, self._loaded[name])
        computed = {self._loaded[name].digest for name in state.computed}
        is_new = not computed <= self.offer.bank.layout.places.keys()
        if is_new:
            self._check_caught_up()
            for name in self._loaded:
                if name not in state.computed:
                    self._check_idle(name)
            self._order(self._make_offer(state))
        self._state = state
        self._compute()

    def _check_caught_up(self) -> None:
        """What is still on its way may begin requests of a set of before."""
        behind = self._streams.lacking(self._holds_all)
        if behind:
            raise SwapError(
                f"engine {behind[0]} has not yet sent a step with the bank of now: "
                f"try again in a second"
            )

    def _check_idle(self, name: str) -> None:
        """An engine that was away may have brought requests of a set from before."""
        if name in self._loaded and name != self._state.live and self._n_requests(name):
            raise SwapError(f"{name}: requests that began under it still run")

    def _check(self, hello: pb.HelloRequest, one: LoadedSet) -> None:
        try:
            check_hello(hello, one.bundle, one.bank)
        except (MalformedHello, UnfitEngine) as error:
            raise SwapError(f"{one.name}: engine {hello.engine}: {error}") from error

    def _make_offer(self, state: DetectorSets | None = None) -> Offer:
        names = (state or self._state).computed
        try:
            return Offer.of([self._loaded[name] for name in names])
        except ArtifactError as error:
            raise SwapError(str(error)) from error

    def _order(self, offer: Offer) -> None:
        """Tell every engine to compute what *offer* holds, unless it does already."""
        before, self.offer = self.offer, offer
        self._remember_offer()
        if offer.bank.digest != before.bank.digest:
            self._streams.send(offer.order)

    def _remember_offer(self) -> None:
        bank = tuple(one.digest for one in self.offer.sets)
        self._remember(bank, self.offer.bank)

    def _remember(self, bank: tuple[str, ...], union: BankUnion) -> None:
        known = self._layouts.get(union.digest)
        layout = union.layout if known is None else known.merged(union.layout)
        self._layouts[union.digest] = layout
        self._banks.pop(bank, None)
        self._banks[bank] = union.digest
        while len(self._banks) > _MAX_BANKS:
            self._banks.pop(next(iter(self._banks)))
        used = set(self._banks.values())
        self._layouts = {d: one for d, one in self._layouts.items() if d in used}

    def _last_offer(self, restored: Restored) -> Offer | None:
        """What engines were told before, if it still holds all that is wanted."""
        wanted = {self._loaded[n].digest for n in self._state.computed}
        known = {one.digest: one for one in self._loaded.values()}
        last = restored.banks[-1] if restored.banks else ()
        if not wanted <= set(last) or not set(last) <= known.keys():
            return None
        return Offer.of([known[digest] for digest in last])

    def _compute(self) -> None:
        """Let the monitor score with what is computed, and forget the rest."""
        sets, state = self._monitor.sets, self._state
        wanted = [n for n in (*state.computed, state.previous) if n]
        for one in (self._loaded[name] for name in wanted):
            if not sets.knows(one.digest):
                bundle = one.bundle
                sets.watch(one.digest, one.bank, bundle.detectors, bundle.calibration)
        sets.set_layouts(self._layouts)
        if sets.now.digest != self.live.digest:
            sets.go_live(self.live.digest)
        sets.expect(self._digest_of(state.coming))
        sets.run_beside(self._digest_of(state.shadow))
        sets.keep({self._loaded[name].digest for name in wanted})
        self.is_changed = True

    def _digest_of(self, name: str) -> str:
        return self._loaded[name].digest if name else ""

    def _is_held(self, bank_digest: str, name: str) -> bool:
        return _holds(self._layouts.get(bank_digest), self._loaded[name].digest)

    def _holds_all(self, bank_digest: str) -> bool:
        return all(self._is_held(bank_digest, name) for name in self._state.computed)

    def _n_requests(self, name: str) -> int:
        digest = self._loaded[name].digest
        sets = self._monitor.sets
        return sets.of(digest).n_requests if sets.knows(digest) else 0

    def _view_of(self, name: str) -> SetView:
        one, sets = self._loaded[name], self._monitor.sets
        tally = sets.tally_of(one.digest)
        return SetView(
            name=name,
            digest=one.digest,
            state=self._state.state_of(name),
            path=str(one.path),
            n_detectors=len(one.bundle.detectors),
            n_live_requests=self._n_requests(name),
            tally=tally.copy() if tally else None,
        )

    def _event(self, kind: str, detail: str) -> Event:
        self.is_changed = True
        log.info("%s: %s", kind, detail)
        return Event(kind=kind, detail=detail)


_EVENTS = {
    ChangeKind.LOAD: "detectors_loaded",
    ChangeKind.UNLOAD: "detectors_unloaded",
    ChangeKind.SHADOW: "shadow_started",
    ChangeKind.PROMOTE: "promoted",
    ChangeKind.ROLL_BACK: "rolled_back",
}


def _called(one: LoadedSet) -> str:
    return f"{one.name} (digest {one.digest})"


def _holds(layout: UnionLayout | None, digest: str) -> bool:
    return layout is not None and digest in layout.places
