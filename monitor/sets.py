# Rule 1: a request is scored by one detector set, from its first token to its last.
# Which one is settled when its first row is scored.
#
# Rule 2: a set's statistics are of columns that its own projections made. A batch says
# which bank made its columns; where a set's lie in it, the bank's layout says. Without
# them the rows are lost, with a reason, and never scored with what is there instead.
#
# Rule 3: the shadow set changes nothing: no flag, no count of tokens, no verdict. What
# it would have said is in its tally.
"""The detector sets that score live requests: one for each, and one beside it."""

from collections.abc import Container, Mapping, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from monitor.beside import end_beside, take_in_beside
from monitor.ended import Key
from monitor.layouts import Layouts
from monitor.live import LiveRequest
from monitor.ranks import joined
from monitor.records import Flag, RequestSummary, StepBatch, Verdict
from monitor.scoring import ScoredRows
from monitor.set_scores import (
    SetScores,
    ShadowTally,
    WatchedSet,
    fates_of,
)
from monitor.shadow import ScoreShadow
from monitor.watch import Watch
from probes.bank import ProjectionBank
from probes.bank_union import UnionLayout
from probes.calibration import Calibration
from probes.detector import Detector

_NOBODY = -1


class WatchedSets:
    """
    Every set that scores, and which of them begins what.

    Attributes:
        live: Number of the set whose are the requests that begin.

        shadow: Number of the set that scores them too; -1 is none.

        coming: Number of the set that is going to be live; -1 is none. It scores what
            it can of each step, for what it says of tokens in the prefix cache.
    """

    def __init__(
        self,
        *,
        max_history_bytes: int,
        max_shadow_bytes: int,
        discovery_rate: float | None,
    ) -> None:
        self.live = self.shadow = self.coming = _NOBODY
        self._max_history_bytes = max_history_bytes
        self._max_shadow_bytes = max_shadow_bytes
        self._discovery_rate = discovery_rate
        self._sets: dict[int, WatchedSet] = {}
        self._was_live: list[int] = []
        self._tallies: dict[str, ShadowTally] = {}
        self._layouts = Layouts()
        self._numbers = count()

    def watch(
        self,
        digest: str,
        bank: ProjectionBank,
        detectors: Sequence[Detector],
        calibration: Calibration,
    ) -> None:
        """
        Be ready to score with a set, which does nothing before it is told to.

        Args:
            digest: Of its bundle; no other set has it.
            bank: Compiled from exactly *detectors*.
            detectors: Each name once.
            calibration: Of exactly *detectors*, in order.

        Raises:
            ValueError: There is no detector, or the calibration is of others.
        """
        if not detectors:
            raise ValueError("detectors: expected one or more, got none")
        watch = Watch(
            bank,
            detectors,
            calibration,
            bundle_digest=digest,
            max_history_bytes=self._max_history_bytes,
            discovery_rate=self._discovery_rate,
        )
        names = tuple(detector.name for detector in detectors)
        no_flags = dict.fromkeys(names, 0)
        # A number is used once: a set that comes back knows nothing of before.
        self._sets[next(self._numbers)] = WatchedSet(
            digest=digest,
            names=names,
            bank=bank,
            watch=watch,
            tally=self._tallies.setdefault(digest, ShadowTally(no_flags)),
            score_shadow=ScoreShadow(self._max_shadow_bytes),
        )

    def knows(self, digest: str) -> bool:
        """Whether the set of the bundle *digest* was added."""
        return any(one.digest == digest for one in self._sets.values())

    def of(self, digest: str) -> WatchedSet:
        """
        Return the set of the bundle *digest*.

        Raises:
            KeyError: It was not added.
        """
        return self._sets[self._number(digest)]

    def tally_of(self, digest: str) -> ShadowTally | None:
        """What the set of a bundle said as shadow, ever; None if it never scored."""
        return self._tallies.get(digest)

    def score_shadow_of(self, number: int) -> ScoreShadow:
        """What a set said of the token in each KV slot."""
        return self._sets[number].score_shadow

    @property
    def now(self) -> WatchedSet:
        """The live set."""
        return self._sets[self.live]

    def keep(self, digests: Container[str]) -> None:
        """Forget every set but *digests* that does nothing and has no request."""
        busy = (self.live, self.shadow, self.coming)
        self._sets = {
            number: one
            for number, one in self._sets.items()
            if one.digest in digests or one.n_requests or number in busy
        }
        self._was_live = [n for n in self._was_live if n in self._sets]

    def go_live(self, digest: str) -> None:
        """Let the requests that begin from here on be this set's."""
        self.live = self._number(digest)
        self._was_live = [self.live, *(n for n in self._was_live if n != self.live)]
        self.shadow = _NOBODY if self.shadow == self.live else self.shadow
        self.coming = _NOBODY

    def expect(self, digest: str) -> None:
        """Let a set see what it can before it goes live; "": none."""
        self.coming = self._number(digest) if digest else _NOBODY

    def run_beside(self, digest: str) -> None:
        """Score the requests that begin from here on with this set too; "": none."""
        self.shadow = self._number(digest) if digest else _NOBODY

    def set_layouts(self, layouts: Mapping[str, UnionLayout]) -> None:
        """Say which banks engines may compute, by their digest."""
        self._layouts.replace(layouts)

    def cut(self, batch: StepBatch) -> StepBatch:
        """Leave out of *batch* what no set reads."""
        return self._layouts.cut(batch, self._sets.values())

    def join(self, parts: Sequence[StepBatch]) -> StepBatch:
        """
        Return one step of what each rank of an engine sent of it.

        Raises:
            BatchError: They are not of the same rows, or of banks without a set in
                common.
        """
        first = [self._sets[number] for number in self._was_live]
        cut = [self.cut(part) for part in parts]
        return joined(self._layouts.alike(cut, first))

    def view_of(self, digest: str, batch: StepBatch) -> StepBatch:
        """
        Return *batch* as if only the bank of the bundle *digest* had been computed.

        Where it was not, it comes back as it is.

        Raises:
            KeyError: The set was not added.
        """
        return self._view(batch, self._number(digest))

    def widths(self, batch: StepBatch) -> Mapping[str, int]:
        """Expected columns, or d_model, by hook point; empty: of an unknown bank."""
        return self._layouts.widths(batch, self.now, self._sets.values())

    def score(
        self,
        batch: StepBatch,
        known: Sequence[LiveRequest | None],
        request_of_row: NDArray[np.int64],
    ) -> SetScores:
        """
        Score the rows of *batch*, each with the set of its request. Changes nothing.

        Args:
            batch: Checked against `widths`.
            known: What is known of each request.
            request_of_row: Of shape (n_rows,), into *known*.
        """
        if len(self._sets) == 1:  # As nearly always.
            only_one = self.now.watch.score(self._view(batch, self.live))
            return SetScores(
                fates=only_one.fates,
                owners=np.full(len(known), self.live),
                each={self.live: only_one},
                request_of_row=request_of_row,
            )
        holds = {number: self._holds(batch, number) for number in self._sets}
        owners = [self._owner(live, holds) for live in known]
        others = (self.live, self.shadow, self.coming)
        wanted = dict.fromkeys([*owners, *(n for n in others if holds.get(n))])
        each = {n: self._sets[n].watch.score(self._view(batch, n)) for n in wanted}
        numbers = np.array(owners, dtype=np.int64)
        return SetScores(
            fates=fates_of(each, numbers[request_of_row]),
            owners=numbers,
            each=each,
            request_of_row=request_of_row,
        )

    def begin(self) -> LiveRequest:
        """Return a request of which nothing was seen."""
        live = self.now.watch.begin()
        live.set_number = self.live
        self.now.n_requests += 1
        if self.shadow >= 0:
            live.beside = self._sets[self.shadow].watch.begin()
            live.beside.set_number = self.shadow
        return live

    def take_in(
        self,
        batch: StepBatch,
        scored: SetScores,
        requests: Sequence[LiveRequest],
        positions: NDArray[np.int64],
    ) -> list[Flag]:
        """
        Fold what `score` found into *requests*, and return the flags it raises.

        Args:
            batch: The step.
            scored: Of *batch*.
            requests: In row order.
            positions: Of shape (n_rows,).
        """
        flags: list[Flag] = []
        for number in scored.each:
            own = scored.of(number)
            if len(own.rows):
                flags += self._sets[number].watch.take_in(
                    batch, own, requests, scored.request_of_row, positions
                )
        if self.shadow in scored.each:
            take_in_beside(
                self._sets[self.shadow],
                batch,
                scored.each[self.shadow],
                [self._beside(live) for live in requests],
                scored.request_of_row,
                positions,
                is_cached=False,
            )
        return flags

    def take_in_cached(
        self,
        number: int,
        batch: StepBatch,
        found: ScoredRows,
        requests: Sequence[LiveRequest],
        request_of_row: NDArray[np.int64],
        positions: NDArray[np.int64],
        *,
        is_beside: bool,
    ) -> list[Flag]:
        """As `take_in`, of what one set said before of tokens from the prefix cache."""
        one = self._sets[number]
        if not is_beside:
            return one.watch.take_in(batch, found, requests, request_of_row, positions)
        besides = [self._beside(live) for live in requests]
        take_in_beside(
            one, batch, found, besides, request_of_row, positions, is_cached=True
        )
        return []

    def settle(
        self,
        batch: StepBatch,
        requests: Sequence[LiveRequest],
        owners: NDArray[np.int64],
    ) -> None:
        """
        Make *requests* those of their *owners* (n_requests,), and see who is followed.

        The shadow leaves out a request of which it can not score a step: it scores one
        from its first token to its last, or not at all.
        """
        if len(self._sets) == 1:
            return
        for live, owner in zip(requests, owners.tolist(), strict=True):
            if live.set_number != owner:
                self._move(live, owner)
        if self.shadow == _NOBODY:
            return
        is_held = self._holds(batch, self.shadow)
        for live in requests:
            if live.beside is None:
                continue
            if not is_held:
                self._stop_beside(live)
                continue
            live.beside.next_position = live.next_position
            live.beside.n_prompt_tokens = live.n_prompt_tokens

    def forget_engine(self, engine: str) -> None:
        """Drop what is kept of the KV slots of an engine that is gone."""
        for one in self._sets.values():
            one.score_shadow.forget(engine)

    def end(
        self, key: Key, live: LiveRequest, verdict: Verdict
    ) -> tuple[list[Flag], RequestSummary]:
        """Judge what can only be judged now, sum up, and forget *live*."""
        own = self._sets.get(live.set_number, self.now)
        flags, summary = own.watch.end(key, live, verdict)
        if live.set_number >= 0:
            own.n_requests -= 1
        beside = self._beside(live)
        if beside and beside.coverage.n_judged == live.coverage.n_expected:
            end_beside(self._sets[self.shadow], key, live, verdict)
        else:
            self._stop_beside(live)
        return flags, summary

    def _number(self, digest: str) -> int:
        for number, one in self._sets.items():
            if one.digest == digest:
                return number
        raise KeyError(digest)

    def _holds(self, batch: StepBatch, number: int) -> bool:
        return self._layouts.holds(batch, self._sets[number])

    def _owner(self, live: LiveRequest | None, holds: Mapping[int, bool]) -> int:
        """
        The set of a request: the live one, unless the rows came from before it was.

        An engine that was away while the sets changed sends what its bank of then
        made. Its requests are the set's that this bank was for.
        """
        if live is not None and live.coverage.n_judged:
            return live.set_number
        return next((n for n in self._was_live if holds[n]), self.live)

    def _view(self, batch: StepBatch, number: int) -> StepBatch:
        return self._layouts.view(batch, self._sets[number])

    def _move(self, live: LiveRequest, owner: int) -> None:
        """Make a request of which no row was scored another set's."""
        before, after = self._sets[live.set_number], self._sets[owner]
        before.watch.give_back(live)
        fresh = after.watch.begin()
        live.slot, live.number, live.since = fresh.slot, fresh.number, fresh.since
        live.set_number = owner
        before.n_requests -= 1
        after.n_requests += 1
        if live.beside is not None and live.beside.set_number == owner:
            self._stop_beside(live)

    def _beside(self, live: LiveRequest) -> LiveRequest | None:
        """What the shadow of now remembers of *live*."""
        beside = live.beside
        return beside if beside and beside.set_number == self.shadow else None

    def _stop_beside(self, live: LiveRequest) -> None:
        beside, live.beside = live.beside, None
        if beside is not None and beside.set_number in self._sets:
            self._sets[beside.set_number].watch.give_back(beside)
