"""What the detectors say of live requests: scores, flags and judgements."""

from collections.abc import Sequence
from itertools import count
from math import isnan

import numpy as np
from numpy.typing import NDArray

from monitor.ended import Key
from monitor.history import NO_HISTORY, RequestHistory, TokenHistory
from monitor.judging import Judge, Judgement
from monitor.live import LiveRequest, peak
from monitor.recent_steps import RecentSteps
from monitor.records import Flag, RequestSummary, StepBatch, Verdict
from monitor.scoring import ScoredRows, score_rows
from monitor.summary import summarize
from probes.aggregate import is_answer
from probes.arrays import Float32, Float64
from probes.bank import ProjectionBank
from probes.calibration import Calibration, Peaks
from probes.contributions import (
    Contribution,
    contributions_of,
    only_hook_point,
    top,
)
from probes.detector import Detector
from probes.evidence import Scorer

_LARGEST_NUMBER = (1 << 31) - 1


class Watch:
    """A detector set's states and memories. Which tokens were lost it does not know."""

    def __init__(
        self,
        bank: ProjectionBank,
        detectors: Sequence[Detector],
        calibration: Calibration,
        *,
        bundle_digest: str,
        max_history_bytes: int,
        discovery_rate: float | None,
    ) -> None:
        self._bank = bank
        self._bundle_digest = bundle_digest
        self._detectors = tuple(detectors)
        self._only_hook_points = [only_hook_point(d) for d in self._detectors]
        self._scorer = Scorer(bank, self._detectors)
        self._peaks = Peaks(self._detectors, calibration)
        self._history = TokenHistory(len(self._detectors), max_history_bytes)
        self._recent = RecentSteps(max_history_bytes)
        self._judge = Judge(calibration, self._peaks, discovery_rate)
        self._numbers = count()

    @property
    def drift(self) -> Float64:
        """Capital of each detector's drift test, (n_detectors,)."""
        return self._judge.drift.capital

    def begin(self) -> LiveRequest:
        """Return a request of which nothing was seen."""
        number = next(self._numbers) & _LARGEST_NUMBER
        since = self._history.next_number
        return LiveRequest(slot=self._peaks.take(), number=number, since=since)

    def give_back(self, live: LiveRequest) -> None:
        """Forget *live*, and say nothing of it."""
        self._peaks.give_back(live.slot)

    def score(self, batch: StepBatch) -> ScoredRows:
        """Score the rows of *batch*. Changes nothing."""
        return score_rows(batch, self._bank, self._scorer)

    def take_in(
        self,
        batch: StepBatch,
        scored: ScoredRows,
        requests: Sequence[LiveRequest],
        request_of_row: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> list[Flag]:
        """
        Fold what `score` found into *requests*, and return the flags it raises.

        Args:
            batch: The step.
            scored: Of *batch*.
            requests: In row order.
            request_of_row: Of shape (n_rows,), into *requests*.
            positions: Of shape (n_rows,).
        """
        owners = request_of_row[scored.rows]
        n_scored_each = np.bincount(owners, minlength=len(requests))
        touched = np.flatnonzero(n_scored_each)
        offsets = np.concatenate([[0], n_scored_each[touched].cumsum()])
        slots = np.array([requests[i].slot for i in touched], dtype=np.int64)
        numbers = np.array([live.number for live in requests], dtype=np.int64)
        answers = is_answer(positions[scored.rows], batch.n_prompt_tokens[owners])
        self._peaks.update(slots, scored.evidence, offsets, answers)
        first = self._history.write(
            numbers[owners],
            positions[scored.rows],
            scored.evidence.scores.T,
            batch.token_ids[scored.rows],
        )
        if scored.step is not None:
            self._recent.note(first, scored.step, scored.rows)
        crossed = self._peaks.crossed_running(slots)
        flags: list[Flag] = []
        for i in np.flatnonzero(crossed.any(axis=1)):
            key = (batch.engine, batch.request_ids[touched[i]])
            live = requests[touched[i]]
            flags += self._flag(key, live, crossed[i], is_ended=False)
        return flags

    def end(
        self, key: Key, live: LiveRequest, verdict: Verdict
    ) -> tuple[list[Flag], RequestSummary]:
        """Judge what can only be judged now, sum up, and forget *live*."""
        flags: list[Flag] = []
        judgement = Judgement()
        statistics = margins = np.full(len(self._detectors), -np.inf)
        if live.slot >= 0:
            crossed = self._peaks.crossed_at_end(live.slot)
            flags = self._flag(key, live, crossed, is_ended=True)
            statistics = self._peaks.statistics[live.slot].copy()
            margins = self._peaks.margins(live.slot)
            if live.coverage.n_judged:
                is_whole = verdict is Verdict.SCANNED
                judgement = self._judge.judge(live.slot, is_whole=is_whole)
            self._peaks.give_back(live.slot)
        names = [d.name for d in self._detectors]
        history = NO_HISTORY
        if live.flagged:
            history = self._history_of(live)
        return flags, summarize(
            key,
            live,
            verdict,
            judgement,
            self._bundle_digest,
            dict(zip(names, statistics.tolist(), strict=True)),
            dict(zip(names, margins.tolist(), strict=True)),
            history,
        )

    def _flag(
        self, key: Key, live: LiveRequest, crossed: NDArray[np.bool_], *, is_ended: bool
    ) -> list[Flag]:
        """Flag a request by the detectors that crossed, unless they did before."""
        new = [
            index
            for index in np.flatnonzero(crossed).tolist()
            if self._detectors[index].name not in live.flagged
        ]
        if not new:
            return []
        history = self._history_of(live)
        flags = []
        for index in new:
            detector = self._detectors[index]
            live.flagged.add(detector.name)
            is_all = detector.aggregator.tokens == "all"
            first = 0 if is_all else max(0, live.n_prompt_tokens - 1)
            score, threshold = self._peaks.crossing(live.slot, index, is_ended=is_ended)
            scores = history.scores_of(index)
            position = peak(scores, first)
            flag = Flag(
                engine=key[0],
                request_id=key[1],
                detector=detector.name,
                score=score,
                threshold=threshold,
                position=position,
                bank_digest=self._bank.digest,
                bundle_digest=self._bundle_digest,
                scores=scores,
                token_ids=history.token_ids,
                adapter=live.adapter,
                contributions=self._contributions(index, history, position, scores),
            )
            flags.append(flag)
        return flags

    def _history_of(self, live: LiveRequest) -> RequestHistory:
        return self._history.of(live.number, live.next_position, live.since)

    def _contributions(
        self,
        index: int,
        history: RequestHistory,
        position: int,
        scores: Float32,
    ) -> tuple[Contribution, ...]:
        """What the parts of a detector said at *position* of a request."""
        detector, hook_point = self._detectors[index], self._only_hook_points[index]
        if hook_point is not None:
            score = float(scores[position])
            return () if isnan(score) else top({hook_point: score})
        found = self._recent.find(history.number_at(position))
        if found is None:
            return ()
        step, row = found
        some = slice(row, row + 1)
        if step.activations:
            whole = {h: values[some] for h, values in step.activations.items()}
            columns, norms = self._bank.project(whole)
        else:
            whole = {}
            columns = {h: values[some] for h, values in step.columns.items()}
            norms = {h: values[some] for h, values in step.squared_norms.items()}
        own = self._bank.columns_of(detector.name, columns, norms)
        return top(contributions_of(detector, own, whole))
