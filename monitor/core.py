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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

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
from monitor.scoring import (
    MISATTRIBUTED_FATE,
    REPEATED,
    SCORED,
    ScoredRows,
    refusal_of,
)
from monitor.sharing import Shadowed, Sharing
from monitor.summary import Finished
from monitor.watch import Watch
from probes.arrays import Float64
from probes.bank import ProjectionBank
from probes.calibration import Calibration
from probes.detector import Detector

__all__ = ["BatchError", "Finished", "Monitor"]


class Monitor:
    """
    Holds every live request against every detector.

    Attributes:
        totals: Counters over all requests; they only rise. Read, never write.
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
            max_shadow_bytes: Of each engine, for the score shadow; 0: tokens from the
                prefix cache are lost.
            shadow_seed: 64 random bits.

        Raises:
            ValueError: There is no detector, or the calibration is of others.
        """
        if not detectors:
            raise ValueError("detectors: expected one or more, got none")
        self._bank_digest = bank.digest
        self._watch = Watch(
            bank,
            detectors,
            calibration,
            max_history_bytes=max_history_bytes,
            discovery_rate=discovery_rate,
        )
        self._max_live_requests = max_live_requests
        self._max_positions = max_positions
        self._drafts = Drafts()
        self._sharing = (
            Sharing(max_shadow_bytes, shadow_seed) if max_shadow_bytes else None
        )
        self._widths = {h: bank.n_columns(h) for h in bank.hook_points}
        self._d_models = {h: bank.weights[h].shape[1] for h in bank.hook_points}
        self.totals = Totals(n_flags={d.name: 0 for d in detectors})
        self._books = Books(self.totals, self._watch.begin)

    @property
    def n_live_requests(self) -> int:
        """How many requests have begun and not ended."""
        return len(self._books.live)

    @property
    def drift(self) -> Float64:
        """Capital of each detector's drift test, (n_detectors,); 1 at the start."""
        return self._watch.drift

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
            widths=self._expected_widths(batch),
            max_positions=self._max_positions,
        )
        flags: list[Flag] = []
        for settled in self._drafts.settle(batch):
            flags += self._observe(settled)
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
        # All scores before any state: an error leaves the monitor as it was.
        scored = self._watch.score(batch)
        shadowed, traced = None, None
        if self._sharing is not None and len(batch.slots):
            known = [self._books.live.get((batch.engine, r)) for r in batch.request_ids]
            traced = self._sharing.trace(batch, positions, request_of_row, known)
            # Stored first: vLLM shares a block in the very step that fills it.
            self._sharing.store(batch, traced, scored, request_of_row)
            shadowed = self._sharing.fetch(batch, traced, seen_until)
        scored = scored.without(positions < seen_until[request_of_row])
        requests = self._books.advance(batch, scored, shadowed)
        if traced is not None:
            traced.note(batch, requests)
        if (scored.fates == MISATTRIBUTED_FATE).any():
            self.doubt(batch.engine)
        self._books.repeats.note(batch.engine, batch.step)
        flags: list[Flag] = []
        if shadowed is not None and shadowed.is_found.any():
            flags += self._take_in_shadowed(batch, shadowed, requests)
        if len(scored.rows):
            flags += self._watch.take_in(
                batch, scored, requests, request_of_row, positions
            )
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
        if self._sharing is not None:
            self._sharing.forget(engine)
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

    def _expected_widths(self, batch: StepBatch) -> Mapping[str, int]:
        if batch.activations:
            return self._d_models
        is_ours = refusal_of(batch, self._bank_digest) is None
        return self._widths if is_ours else {}

    def _take_in_shadowed(
        self, batch: StepBatch, shadowed: Shadowed, requests: Sequence[LiveRequest]
    ) -> list[Flag]:
        """Fold in what the score shadow knows, before the rows that come after."""
        cached = replace(
            batch,
            request_ids=tuple(batch.request_ids[i] for i in shadowed.indices),
            row_offsets=shadowed.offsets,
            n_prompt_tokens=batch.n_prompt_tokens[shadowed.indices],
            token_ids=shadowed.token_ids,
        )
        found = ScoredRows(
            fates=np.where(shadowed.is_found, SCORED, REPEATED).astype(np.uint8),
            rows=np.flatnonzero(shadowed.is_found),
            evidence=shadowed.evidence,
        )
        return self._watch.take_in(
            cached,
            found,
            [requests[i] for i in shadowed.indices],
            np.repeat(np.arange(len(shadowed.indices)), np.diff(shadowed.offsets)),
            shadowed.positions,
        )

    def _finish(self, key: Key, *, is_end_seen: bool) -> Finished:
        live = self._books.live.pop(key, None) or LiveRequest(slot=-1, number=-1)
        if self._drafts.is_held(key):
            # Nobody said which of its last rows were tokens of the request.
            self._drafts.forget(key)
            live.is_whole = False
        verdict = live.coverage.verdict
        if verdict is Verdict.SCANNED and not (is_end_seen and live.is_whole):
            verdict = Verdict.PARTIAL
        self.totals.n_requests[verdict] += 1
        flags, summary = self._watch.end(key, live, verdict)
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
            self.totals.n_flags[flag.detector] += 1
