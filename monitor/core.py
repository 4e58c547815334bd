# Rule 1: no clock, no thread, no socket, no file, no metric and no log in here.
# Whoever calls observe() decides when, and does something with what comes back.
#
# Rule 2: a token that is not scored is counted, in books.py.
#
# Rule 3: everything that can be refused is refused before anything changes.
#
# Each (request, detector) pair is in one of two states:
#
#     WATCHING --peak > level of its length--> FLAGGED
#
# and there is no way back, so that one bad request is one line in the audit log
# and not one per token. Detectors whose statistic can fall again are judged once,
# when the request ends; see probes/calibration/record.py.
"""Scores batches, keeps one record per live request, and returns flags."""

from collections.abc import Iterable, Sequence

import numpy as np

from monitor.books import Books
from monitor.checks import BatchError, check_batch, check_gap
from monitor.coverage import Coverage, Totals
from monitor.drafts import Drafts
from monitor.ended import Ended, Key
from monitor.live import LiveRequest
from monitor.records import (
    Flag,
    Gap,
    StepBatch,
    Verdict,
)
from monitor.scoring import MISATTRIBUTED_FATE
from monitor.set_sharing import SetSharing
from monitor.sets import WatchedSets
from monitor.summary import Finished
from probes.arrays import Float64
from probes.bank import ProjectionBank
from probes.bank_union import BankUnion
from probes.calibration import Calibration
from probes.detector import Detector

__all__ = ["BatchError", "Finished", "Monitor"]


class Monitor:
    """
    Holds every live request against every detector.

    Attributes:
        totals: Counters over all requests; they only rise. Read, never write.

        is_in_doubt: Set while what is seen can not be trusted: no request that ends is
            called scanned.

        sets: The detector sets that score. To be changed between two batches only.
    """

    def __init__(
        self,
        bank: ProjectionBank,
        detectors: Sequence[Detector],
        calibration: Calibration,
        *,
        max_live_requests: int = 16384,
        max_positions: int = 1 << 20,
        max_history_bytes: int = 64 << 20,
        discovery_rate: float | None = None,
        max_shadow_bytes: int = 0,
        shadow_seed: int = 0,
        bundle_digest: str = "",
    ) -> None:
        """
        Watch with *detectors*, whose projections are stacked in *bank*.

        Args:
            bank: Compiled from exactly *detectors*.
            detectors: Each name once.
            calibration: Of exactly *detectors*, in order.
            max_live_requests: `evict` keeps no more than these.
            max_positions: Longest sequence that is believed. 2^20 is beyond every
                context that vLLM serves in 2026, and bounds what a flag copies.
            max_history_bytes: For the scores of the last tokens of all requests.
            discovery_rate: Bound of the false discovery rate over requests; None to
                test for no discoveries.
            max_shadow_bytes: Of each engine and set, for the score shadow; 0: tokens
                from the prefix cache are lost.
            shadow_seed: 64 random bits.
            bundle_digest: What this detector set is called.

        Raises:
            ValueError: There is no detector, or the calibration is of others.
        """
        self.sets = WatchedSets(
            max_history_bytes=max_history_bytes,
            max_shadow_bytes=max_shadow_bytes,
            discovery_rate=discovery_rate,
        )
        self.sets.watch(bundle_digest, bank, detectors, calibration)
        self.sets.go_live(bundle_digest)
        layout = BankUnion.compile({bundle_digest: bank}).layout
        self.sets.set_layouts({bank.digest: layout})
        self._max_live_requests = max_live_requests
        self._max_positions = max_positions
        self.is_in_doubt = False
        self._drafts = Drafts()
        self._sharing = SetSharing(self.sets, shadow_seed) if max_shadow_bytes else None
        self.totals = Totals(n_flags={d.name: 0 for d in detectors})
        self._books = Books(self.totals, self.sets.begin)

    @property
    def n_live_requests(self) -> int:
        """How many requests have begun and not ended."""
        return len(self._books.live)

    @property
    def drift(self) -> Float64:
        """Capital of the drift test of each of the live set's detectors, at first 1."""
        return self.sets.now.watch.drift

    def observe(self, batch: StepBatch) -> list[Flag]:
        """
        Score *batch* and return the flags it raised, request by request.

        Requests in ``batch.finished`` are the caller's to `finish`, afterwards.

        Raises:
            BatchError: The batch is malformed. Nothing was scored or counted and no
                state changed; the next batch may be observed.
        """
        check_batch(
            batch,
            widths=self.sets.widths(batch),
            max_positions=self._max_positions,
        )
        flags: list[Flag] = []
        for settled in self._drafts.settle(batch):
            flags += self._observe(settled)
        for request_id, n_positions in batch.n_positions.items():
            self._books.see_length((batch.engine, request_id), n_positions)
        return flags

    def _observe(self, batch: StepBatch) -> list[Flag]:
        """Score final rows, count them, and fold them in."""
        n_rows_each = np.diff(batch.row_offsets)
        request_of_row = np.repeat(np.arange(len(n_rows_each)), n_rows_each)
        first_rows = batch.row_offsets[:-1] - batch.first_positions
        positions = np.arange(len(request_of_row)) - first_rows[request_of_row]
        seen_until = np.array(
            [self._books.next_position((batch.engine, r)) for r in batch.request_ids],
            dtype=np.int64,
        )
        known = [self._books.live.get((batch.engine, r)) for r in batch.request_ids]
        # All scores before any state: an error leaves the monitor as it was.
        scored = self.sets.score(batch, known, request_of_row)
        cached = None
        if self._sharing is not None and len(batch.slots):
            cached = self._sharing.exchange(batch, scored, positions, known, seen_until)
        scored = scored.without(positions < seen_until[request_of_row])
        counts = {} if cached is None else cached.counts()
        requests = self._books.advance(batch, scored.fates, counts)
        if (scored.fates == MISATTRIBUTED_FATE).any():
            self.doubt(batch.engine)
        self._books.repeats.note(batch.engine, batch.step)
        self.sets.settle(batch, requests, scored.owners)
        flags: list[Flag] = []
        if cached is not None:
            flags += cached.take_in(batch, self.sets, requests)
        if scored.has_evidence:
            flags += self.sets.take_in(batch, scored, requests, positions)
        self._count_flags(flags)
        return flags

    def finish(self, engine: str, request_id: str) -> Finished:
        """
        Forget a request, judge what can only be judged now, and sum up.

        A request that nobody mentioned before is `Verdict.UNSCANNED`: it was served,
        and nothing of it was seen.
        """
        return self._finish((engine, request_id), is_end_seen=True)

    def abandon(self, engine: str, request_id: str) -> Finished:
        """
        Finish a request whose end nobody saw: at most `Verdict.PARTIAL`.

        Should it go on after all, its later tokens are summed up apart, as partial.
        """
        return self._finish((engine, request_id), is_end_seen=False)

    def end(self, engine: str, request_ids: Iterable[str]) -> list[Finished]:
        """`finish` each; one that was abandoned, and did not go on, is summed up."""
        finished = []
        for request_id in request_ids:
            key = (engine, request_id)
            if key not in self._books.live and self._books.ended.abandoned(key):
                self._books.ended.see_end(key)
            else:
                finished.append(self._finish(key, is_end_seen=True))
        return finished

    def record_gap(self, gap: Gap) -> list[Finished]:
        """
        Count what *gap* says was lost, once, and finish the requests it ended.

        Raises:
            BatchError: The gap is malformed. Nothing was counted.
        """
        check_gap(gap, max_positions=self._max_positions)
        for lost in gap.lost:
            # Who decided on them was in the gap: those that were kept are a hole.
            self._drafts.forget((gap.engine, lost.request_id))
        self._books.record_gap(gap)
        ended = [
            i for i in gap.finished if not self._books.is_past((gap.engine, i), gap)
        ]
        return self.end(gap.engine, ended)

    def evict(self) -> list[Finished]:
        """Finish the oldest requests, until no more than the allowed are live."""
        n_excess = max(0, len(self._books.live) - self._max_live_requests)
        self.totals.n_evicted += n_excess
        oldest = list(self._books.live)[:n_excess]
        return [self.abandon(*key) for key in oldest]

    def doubt(self, engine: str) -> None:
        """Call none of the live requests of *engine* scanned, whatever it sends."""
        self._books.doubt(engine)

    def end_engine(self, engine: str) -> list[Finished]:
        """`abandon` every request of an engine that is gone."""
        self.sets.forget_engine(engine)
        return [self.abandon(engine, request_id) for request_id in self.live(engine)]

    def end_all(self) -> list[Finished]:
        """`abandon` every request: nobody will watch them any more."""
        return [self.abandon(*key) for key in list(self._books.live)]

    def is_repeated(self, engine: str, step: int) -> bool:
        """
        Whether *step* of *engine*, or a later one, was observed or lost before.

        A sender that lost an acknowledgement sends again: the caller skips it.
        """
        return step <= self._books.repeats.last_step(engine)

    def live(self, engine: str) -> list[str]:
        """Return the ids of the live requests of *engine*, oldest first."""
        return [request_id for e, request_id in self._books.live if e == engine]

    def live_ids(self) -> set[str]:
        """Return the ids of the live requests of all engines."""
        return {request_id for _, request_id in self._books.live}

    def stale(self, engine: str, before_step: int) -> list[str]:
        """Return the live requests of *engine* last mentioned before *before_step*."""
        return [
            key[1]
            for key, live in self._books.live.items()
            if key[0] == engine and live.last_step < before_step
        ]

    def coverage(self, engine: str, request_id: str) -> Coverage:
        """
        Return the counts of one live request.

        Raises:
            KeyError: It is not live.
        """
        return self._books.live[engine, request_id].coverage

    def _finish(self, key: Key, *, is_end_seen: bool) -> Finished:
        live = self._books.live.pop(key, None) or LiveRequest(slot=-1, number=-1)
        if self._drafts.is_held(key):
            # Nobody said which of its last rows were tokens of the request.
            self._drafts.forget(key)
            live.is_whole = False
        verdict = live.coverage.verdict
        is_sure = is_end_seen and live.is_whole and not self.is_in_doubt
        if verdict is Verdict.SCANNED and not is_sure:
            verdict = Verdict.PARTIAL
        self.totals.n_requests[verdict] += 1
        flags, summary = self.sets.end(key, live, verdict)
        if live.slot >= 0:
            self._remember_end(key, live, is_end_seen)
        self._count_flags(flags)
        self.totals.n_discoveries += summary.is_discovery
        if summary.abstention is not None:
            self.totals.n_abstentions[summary.abstention] += 1
        return flags, summary

    def _remember_end(self, key: Key, live: LiveRequest, is_end_seen: bool) -> None:
        ended = Ended(
            step=max(live.last_step, self._books.repeats.last_step(key[0])),
            next_position=live.next_position,
            is_end_seen=is_end_seen,
            flagged=frozenset(live.flagged),
        )
        self._books.ended.remember(key, ended)

    def _count_flags(self, flags: Iterable[Flag]) -> None:
        for flag in flags:
            n_before = self.totals.n_flags.get(flag.detector, 0)
            self.totals.n_flags[flag.detector] = n_before + 1
