"""The books: which positions of which request were counted, and as what."""

# Rule: positions of a request are counted once, in order: scored, shadowed, or lost
# with a reason. There is no path through this file on which expected == scored +
# shadowed + lost stops being true.

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from monitor.coverage import Totals
from monitor.ended import EndedRequests, Key
from monitor.live import LiveRequest
from monitor.records import Gap, LossReason, StepBatch, Verdict
from monitor.repeats import Repeats
from monitor.scoring import FATE_REASONS, REPEATED, SCORED, count_fates


class Books:
    """
    Counts of live requests, and what is remembered of ended ones.

    Attributes:
        totals: Over all requests.

        live: By engine and request id, oldest first.
    """

    def __init__(
        self, totals: Totals, begin_watching: Callable[[], LiveRequest]
    ) -> None:
        self.totals = totals
        self._begin_watching = begin_watching
        self.live: dict[Key, LiveRequest] = {}
        self.ended = EndedRequests()
        self.repeats = Repeats()

    def record_gap(self, gap: Gap) -> None:
        """Count what *gap* says was lost, once."""
        for lost in gap.lost:
            key = (gap.engine, lost.request_id)
            if self.is_past(key, gap):
                continue
            live = self.live.get(key) or self._begin(key)
            live.last_step = max(live.last_step, gap.last_step)
            if lost.n_tokens:
                self._lose_hole(gap.engine, live, lost.first_position)
                end = lost.first_position + lost.n_tokens
                live.lose_until(end, gap.reason, self.totals)
        self._count_unlisted(gap)
        self.repeats.note(gap.engine, gap.last_step)

    def next_position(self, key: Key) -> int:
        """Return the position below which everything of a request is counted."""
        known = self.live.get(key) or self.ended.abandoned(key)
        return known.next_position if known else 0

    def see_length(self, key: Key, n_positions: int) -> None:
        """Count what an ending request had beyond all that was told of it as lost."""
        live = self.live.get(key)
        if live is not None:
            self._lose_hole(key[0], live, n_positions)

    def is_past(self, key: Key, gap: Gap) -> bool:
        """
        Whether the request had ended when *gap* began: then all of it is counted.

        A sender that lost an acknowledgement reports steps that were scored.
        """
        ended = self.ended.of(key)
        if key in self.live or ended is None or not ended.is_end_seen:
            return False
        return gap.first_step <= ended.step

    def _count_unlisted(self, gap: Gap) -> None:
        """Count what *gap* does not name: any live request may have lost by it."""
        n_tokens, n_ends = self.repeats.n_new_unlisted(gap)
        self.totals.tokens.n_expected += n_tokens
        self.totals.tokens.n_lost[gap.reason] += n_tokens
        self.totals.n_requests[Verdict.UNSCANNED] += n_ends
        if n_tokens:
            self.doubt(gap.engine)

    def doubt(self, engine: str) -> None:
        """Call none of the live requests of *engine* whole."""
        for key, live in self.live.items():
            if key[0] == engine:
                live.is_whole = False

    def _lose_hole(self, engine: str, live: LiveRequest, position: int) -> None:
        """
        Count the positions up to *position*, of which nobody told anything.

        A gap may have counted them without a name; then the totals have them.
        """
        n_counted = 0
        if not (live.is_whole and live.next_position):
            n_counted = self.repeats.claim(engine, position - live.next_position)
        live.lose_until(
            position, LossReason.NOT_RECEIVED, self.totals, n_counted=n_counted
        )

    def _begin(self, key: Key) -> LiveRequest:
        live = self._begin_watching()
        if (before := self.ended.abandoned(key)) is not None:
            live.next_position = before.next_position
            live.flagged = set(before.flagged)
            live.is_whole = False
        self.ended.forget(key)
        self.live[key] = live
        return live

    def advance(
        self,
        batch: StepBatch,
        fates: NDArray[np.uint8],
        cached: Mapping[int, tuple[int, int]],
    ) -> list[LiveRequest]:
        """
        Count every row of *batch*; return its requests in row order.

        Args:
            batch: A step.
            fates: Of shape (n_rows,).
            cached: By request index, how many tokens from the prefix cache are known
                and how many are not.
        """
        requests: list[LiveRequest] = []
        counts = count_fates(batch, fates)
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
            live = self.live.get((batch.engine, request_id))
            if live is None or not is_scored or live.next_position != first_position:
                requests.append(
                    self._advance_one(batch, i, counts[i].tolist(), cached.get(i))
                )
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
        self,
        batch: StepBatch,
        index: int,
        n_by_fate: Sequence[int],
        n_cached: tuple[int, int] | None,
    ) -> LiveRequest:
        """Count the rows of one request of *batch*, by their fate."""
        key = (batch.engine, batch.request_ids[index])
        first_position = int(batch.first_positions[index])
        live = self.live.get(key)
        is_new = live is None
        live = live or self._begin(key)
        if n_cached is not None:
            live.count_cached(*n_cached, self.totals)
        elif is_new:
            cached = min(int(batch.n_cached[index]), first_position)
            live.lose_until(cached, LossReason.PREFIX_CACHED, self.totals)
        if batch.adapters:
            live.adapter = batch.adapters[index]
        live.last_step = batch.step
        if any(n_by_fate):
            self._lose_hole(batch.engine, live, first_position)
        self.totals.n_repeated += n_by_fate[REPEATED]
        live.count_rows(n_by_fate[SCORED], None, self.totals)
        for fate, reason in FATE_REASONS.items():
            if n_by_fate[fate]:
                live.count_rows(n_by_fate[fate], reason, self.totals)
        return live
