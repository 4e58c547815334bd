"""Makes rows of what a drain adds to the record."""

import json
import math
from collections.abc import Iterable, Mapping

from monitor.records import Flag, Gap, RequestSummary
from service.daemon.audit.kept import Keeper, Parts
from service.daemon.audit.leaves import (
    CONFIG_CHANGES,
    EVENTS,
    EXPORTS,
    FLAGS,
    GAPS,
    LABELS,
    REQUESTS,
    VIEWS,
    Value,
    real,
)
from service.daemon.audit.log import AuditLog, Connection
from service.daemon.audit.records import Entries, Label
from service.daemon.audit.repeats import Repeats
from service.daemon.audit.sealing import KeyFile, Sealed


class RowMaker:
    """
    Adds entries to the log as rows, sealed where they tell of tokens.

    Args:
        model: Written with every flag and request.

        bundle_digest: Of those that name no detector set.

    Attributes:
        erased: Requests of which nothing is kept.
    """

    def __init__(
        self,
        connection: Connection,
        log: AuditLog,
        keys: KeyFile,
        keeper: Keeper,
        *,
        model: str,
        bundle_digest: str,
        erased: Iterable[str] = (),
    ) -> None:
        self._repeats = Repeats(connection, log.next_row(REQUESTS))
        self._log = log
        self._keys = keys
        self._keeper = keeper
        self._model = model
        self._bundle_digest = bundle_digest
        self.erased = set(erased)

    def add(self, entries: Entries, now: float) -> None:
        """Add every one of *entries*, but flags and ends that are in the record."""
        now = float(now)
        for flag in self._repeats.new_flags(entries.flags):
            self._add_flag(flag, now)
        for summary in self._repeats.new_summaries(entries.summaries):
            self._add_summary(summary, now)
        for gap, detail in entries.gaps:
            self._log.add(GAPS, _gap_values(gap, detail, now))
        for event in entries.events:
            self._log.add(EVENTS, (event.kind, event.engine, event.detail, now))
        for label in entries.labels:
            self._add_label(label, now)
        for view in entries.views:
            self._log.add(
                VIEWS, (view.engine, view.request_id, view.viewer, view.where, now)
            )
        for x in entries.exports:
            values = (x.who, x.format, x.query, x.n_records, int(x.has_tokens), now)
            self._log.add(EXPORTS, values)
        for change in entries.config_changes:
            self._log.add(
                CONFIG_CHANGES,
                (change.key, change.before, change.after, change.who, now),
            )

    def _add_flag(self, flag: Flag, now: float) -> None:
        sealed = self._sealed(flag.request_id, self._keeper.parts_of(flag))
        self._log.add(
            FLAGS,
            (
                flag.engine,
                flag.request_id,
                flag.detector,
                real(flag.score),
                real(flag.threshold),
                flag.position,
                flag.bank_digest,
                flag.bundle_digest or self._bundle_digest,
                self._model,
                flag.adapter,
                now,
                sealed.slot,
                sealed.payload,
            ),
        )

    def _add_summary(self, summary: RequestSummary, now: float) -> None:
        parts = self._keeper.parts(summary.scores, summary.token_ids)
        sealed = self._sealed(summary.request_id, parts)
        lost = {reason.value: n for reason, n in summary.n_tokens_lost.items()}
        self._log.add(
            REQUESTS,
            (
                summary.engine,
                summary.request_id,
                summary.verdict.value,
                summary.n_prompt_tokens,
                summary.n_tokens_scored,
                summary.n_tokens_shadowed,
                json.dumps(lost),
                _json(summary.statistics),
                _json(summary.margins),
                json.dumps(summary.flagged_by),
                real(summary.p_value),
                int(summary.is_discovery),
                summary.abstention and summary.abstention.value,
                summary.bundle_digest or self._bundle_digest,
                self._model,
                summary.adapter,
                now,
                sealed.slot,
                sealed.payload,
            ),
        )

    def _sealed(self, request_id: str, parts: Parts) -> Sealed:
        """Seal what is to be kept: nothing of a request that has been erased."""
        return self._keys.seal({} if request_id in self.erased else parts)

    def _add_label(self, label: Label, now: float) -> None:
        sealed = self._keys.seal({"note": label.note.encode()} if label.note else {})
        self._log.add(
            LABELS,
            (
                label.flag_id,
                label.engine,
                label.request_id,
                label.reviewer,
                label.label.value,
                now,
                sealed.slot,
                sealed.payload,
            ),
        )


def _gap_values(gap: Gap, detail: str, now: float) -> tuple[Value, ...]:
    # Without a step and a token nobody counted: the time is all that is known.
    is_counted = gap.n_tokens or gap.last_step
    return (
        gap.engine,
        gap.reason.value,
        gap.first_step,
        gap.last_step,
        gap.n_tokens if is_counted else None,
        real(gap.began_at),
        real(gap.ended_at),
        detail,
        now,
    )


def _json(by_detector: Mapping[str, float]) -> str:
    return json.dumps(
        {n: value if math.isfinite(value) else None for n, value in by_detector.items()}
    )
