# Rule 1: no clock, no thread, no socket, no file, no metric and no log in here.
# Whoever calls observe() decides when, and does something with what comes back.
#
# Rule 2: a token that is not scored is counted. Positions of a request are counted
# once, in order: scored, or lost with a reason. There is no path through this file
# on which expected == scored + lost stops being true.
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

import numpy as np

from monitor.checks import BatchError, check_batch, check_gap
from monitor.coverage import Coverage, Totals
from monitor.ended import Ended, EndedRequests, Key
from monitor.live import LiveRequest
from monitor.records import (
    Flag,
    Gap,
    LossReason,
    StepBatch,
    Verdict,
)
from monitor.repeats import Repeats
from monitor.scoring import (
    FATE_REASONS,
    REPEATED,
    SCORED,
    ScoredRows,
    count_fates,
    refusal_of,
)
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
        self._live: dict[Key, LiveRequest] = {}
        self._ended = EndedRequests()
        self._repeats = Repeats()
        self._widths = {h: bank.n_columns(h) for h in bank.hook_points}
        self._d_models = {h: bank.weights[h].shape[1] for h in bank.hook_points}
        self.totals = Totals(n_flags={d.name: 0 for d in detectors})

    @property
    def n_live_requests(self) -> int:
        """How many requests have begun and not ended."""
        return len(self._live)

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
        n_rows_each = np.diff(batch.row_offsets)
        request_of_row = np.repeat(np.arange(len(n_rows_each)), n_rows_each)
        first_rows = batch.row_offsets[:-1] - batch.first_positions
        positions = np.arange(len(request_of_row)) - first_rows[request_of_row]
        seen_until = np.array(
            [self._next_position((batch.engine, r)) for r in batch.request_ids],
            dtype=np.int64,
        )
        repeated = positions < seen_until[request_of_row]
        # All scores before any state: an error leaves the monitor as it was.
        scored = self._watch.score(batch, repeated)
        requests = self._advance(batch, scored)
        self._repeats.note(batch.engine, batch.step)
        if not len(scored.rows):
            return []
        flags = self._watch.take_in(batch, scored, requests, request_of_row, positions)
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
            if key not in self._live and self._ended.abandoned(key):
                self._ended.see_end(key)
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
            key = (gap.engine, lost.request_id)
            if self._is_past(key, gap):
                continue
            live = self._live.get(key) or self._begin(key)
            live.last_step = max(live.last_step, gap.last_step)
            if lost.n_tokens:
                self._lose_hole(gap.engine, live, lost.first_position)
                end = lost.first_position + lost.n_tokens
                live.lose_until(end, gap.reason, self.totals)
        self._count_unlisted(gap)
        self._repeats.note(gap.engine, gap.last_step)
        ended = [i for i in gap.finished if not self._is_past((gap.engine, i), gap)]
        return self.end(gap.engine, ended)

    def evict(self) -> list[Finished]:
        """Finish the oldest requests, until no more than the allowed are live."""
        n_excess = max(0, len(self._live) - self._max_live_requests)
        self.totals.n_evicted += n_excess
        oldest = list(self._live)[:n_excess]
        return [self.abandon(*key) for key in oldest]

    def end_engine(self, engine: str) -> list[Finished]:
        """`abandon` every request of an engine that is gone."""
        return [self.abandon(engine, request_id) for request_id in self.live(engine)]

    def end_all(self) -> list[Finished]:
        """`abandon` every request: nobody will watch them any more."""
        return [self.abandon(*key) for key in list(self._live)]

    def is_repeated(self, engine: str, step: int) -> bool:
        """
        Whether *step* of *engine*, or a later one, was observed or lost before.

        A sender that lost an acknowledgement sends again: the caller skips it.
        """
        return step <= self._repeats.last_step(engine)

    def live(self, engine: str) -> list[str]:
        """Return the ids of the live requests of *engine*, oldest first."""
        return [request_id for e, request_id in self._live if e == engine]

    def stale(self, engine: str, before_step: int) -> list[str]:
        """Return the live requests of *engine* last mentioned before *before_step*."""
        return [
            key[1]
            for key, live in self._live.items()
            if key[0] == engine and live.last_step < before_step
        ]

    def coverage(self, engine: str, request_id: str) -> Coverage:
        """
        Return the counts of one live request.

        Raises:
            KeyError: It is not live.
        """
        return self._live[engine, request_id].coverage

    def _expected_widths(self, batch: StepBatch) -> Mapping[str, int]:
        if batch.activations:
            return self._d_models
        is_ours = refusal_of(batch, self._bank_digest) is None
        return self._widths if is_ours else {}

    def _next_position(self, key: Key) -> int:
        known = self._live.get(key) or self._ended.abandoned(key)
        return known.next_position if known else 0

    def _is_past(self, key: Key, gap: Gap) -> bool:
        """
        Whether the request had ended when *gap* began: then all of it is counted.

        A sender that lost an acknowledgement reports steps that were scored.
        """
        ended = self._ended.of(key)
        if key in self._live or ended is None or not ended.is_end_seen:
            return False
        return gap.first_step <= ended.step

    def _count_unlisted(self, gap: Gap) -> None:
        """Count what *gap* does not name: any live request may have lost by it."""
        n_tokens, n_ends = self._repeats.n_new_unlisted(gap)
        self.totals.tokens.n_expected += n_tokens
        self.totals.tokens.n_lost[gap.reason] += n_tokens
        self.totals.n_requests[Verdict.UNSCANNED] += n_ends
        if n_tokens:
            for key, live in self._live.items():
                if key[0] == gap.engine:
                    live.is_whole = False

    def _lose_hole(self, engine: str, live: LiveRequest, position: int) -> None:
        """
        Count the positions up to *position*, of which nobody told anything.

        A gap may have counted them without a name; then the totals have them.
        """
        n_counted = 0
        if not (live.is_whole and live.next_position):
            n_counted = self._repeats.claim(engine, position - live.next_position)
        live.lose_until(
            position, LossReason.NOT_RECEIVED, self.totals, n_counted=n_counted
        )

    def _begin(self, key: Key) -> LiveRequest:
        live = self._watch.begin()
        if (before := self._ended.abandoned(key)) is not None:
            live.next_position = before.next_position
            live.flagged = set(before.flagged)
            live.is_whole = False
        self._ended.forget(key)
        self._live[key] = live
        return live

    def _advance(self, batch: StepBatch, scored: ScoredRows) -> list[LiveRequest]:
        """Count every row of *batch*; return its requests in row order."""
        requests: list[LiveRequest] = []
        counts = count_fates(batch, scored.fates)
        n_scored = counts[:, SCORED]
        facts = zip(
            batch.request_ids,
            batch.first_positions.tolist(),
            n_scored.tolist(),
            (counts.sum(axis=1) == n_scored).tolist(),
            strict=True,
        )
        n_usual = 0
        for i, (request_id, first_position, n_rows, is_scored) in enumerate(facts):
            live = self._live.get((batch.engine, request_id))
            if live is None or not is_scored or live.next_position != first_position:
                requests.append(self._advance_one(batch, i, counts[i].tolist()))
                continue
            # As nearly always: known, all rows scored, where it had stopped.
            live.last_step = batch.step
            live.next_position += n_rows
            live.coverage.n_expected += n_rows
            live.coverage.n_scored += n_rows
            n_usual += n_rows
            requests.append(live)
        self.totals.tokens.n_expected += n_usual
        self.totals.tokens.n_scored += n_usual
        for live, n in zip(requests, batch.n_prompt_tokens.tolist(), strict=True):
            if n > live.n_prompt_tokens:
                live.n_prompt_tokens = n
        return requests

    def _advance_one(
        self, batch: StepBatch, index: int, n_by_fate: Sequence[int]
    ) -> LiveRequest:
        """Count the rows of one request of *batch*, by their fate."""
        key = (batch.engine, batch.request_ids[index])
        first_position = int(batch.first_positions[index])
        live = self._live.get(key)
        if live is None:
            live = self._begin(key)
            cached = min(int(batch.n_cached[index]), first_position)
            live.lose_until(cached, LossReason.PREFIX_CACHED, self.totals)
        live.last_step = batch.step
        if any(n_by_fate):
            self._lose_hole(batch.engine, live, first_position)
        self.totals.n_repeated += n_by_fate[REPEATED]
        live.count_rows(n_by_fate[SCORED], None, self.totals)
        for fate, reason in FATE_REASONS.items():
            if n_by_fate[fate]:
                live.count_rows(n_by_fate[fate], reason, self.totals)
        return live

    def _finish(self, key: Key, *, is_end_seen: bool) -> Finished:
        live = self._live.pop(key, None) or LiveRequest(slot=-1, number=-1)
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
            step=max(live.last_step, self._repeats.last_step(key[0])),
            next_position=live.next_position,
            is_end_seen=is_end_seen,
            flagged=frozenset(live.flagged),
        )
        self._ended.remember(key, ended)

    def _count_flags(self, flags: Iterable[Flag]) -> None:
        for flag in flags:
            self.totals.n_flags[flag.detector] += 1
