"""A state machine of all that an engine can do, with the books it should lead to."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from monitor.core import Finished
from monitor.records import (
    NOT_WRITTEN,
    Gap,
    LossReason,
    LostRange,
    StepBatch,
    Verdict,
)
from tests.monitor.builders import ENGINE, batch, monitor, with_norms
from tests.monitor.paged_engine import PagedEngine

_PROMPTS = [[0] * 9, [0] * 12, [0, 0, 0, 0, 5, 5, 5, 5, 5], [7] * 10]
_REASONS = [LossReason.BUFFER_FULL, LossReason.DISCONNECTED, LossReason.NO_BANK]


class Conservation(RuleBasedStateMachine):
    """
    A paged engine with a prefix cache, drafts and preemptions; a way that loses steps,
    tells of some of them and repeats others; and a monitor with little room.

    The reference is one number a request: below it the monitor has been told of every
    position, by rows or in a gap, or has to see that it was not.
    """

    n_steps = 0
    """Over all machines: so that a long run can say how long it was."""

    @initialize(
        n_blocks=st.integers(8, 20),
        n_live=st.integers(1, 4),
        n_bytes=st.sampled_from([0, 60, 1 << 16]),
    )
    def begin(self, n_blocks: int, n_live: int, n_bytes: int) -> None:
        self.engine = PagedEngine(n_blocks)
        self.watch = monitor(max_live_requests=n_live, max_shadow_bytes=n_bytes)
        self.told: dict[str, int] = {}
        self.drafted: set[str] = set()
        self.wounded: set[str] = set()
        self.n_ended = 0
        self.ends: list[Finished] = []
        self.last: StepBatch | None = None

    @property
    def names(self) -> list[str]:
        return list(self.engine.requests)

    @precondition(lambda self: len(self.engine.requests) < 4)
    @rule(prompt=st.sampled_from(_PROMPTS), adapter=st.sampled_from(["", "", "lora"]))
    def start(self, prompt: list[int], adapter: str) -> None:
        name = f"r{len(self.told)}"
        self.told[name] = 0
        self.engine.start(name, prompt, adapter)

    @precondition(lambda self: self.engine.requests)
    @rule(
        pick=st.integers(0, 3),
        n=st.integers(1, 6),
        n_drafts=st.integers(0, 3),
        n_kept=st.integers(0, 3),
        way=st.sampled_from(
            ["fine", "fine", "fine", "silent", "nan", "bank", "gap", "gone"]
        ),
        reason=st.sampled_from(_REASONS),
    )
    def run(
        self,
        pick: int,
        n: int,
        n_drafts: int,
        n_kept: int,
        way: str,
        reason: LossReason,
    ) -> None:
        name = self.names[pick % len(self.names)]
        request = self.engine.requests[name]
        if n_drafts:
            n = max(n, len(request.tokens) - request.n_computed)
        if not self.engine.room_for(name, n + n_drafts):
            return
        first = request.n_computed
        made = self.engine.run(
            (name, n), n_drafts=n_drafts, n_kept=min(n_kept, n_drafts)
        )
        self.drafted.discard(name)
        if n_drafts:
            self.drafted.add(name)
        if way == "gone":
            self.wounded.add(name)
            return
        self.told[name] = max(self.told[name], first + n)
        if way == "gap":
            self.wounded.add(name)
            lost = LostRange(request_id=name, first_position=first, n_tokens=n)
            self.ends += self.watch.record_gap(self._gap(reason, n, (lost,)))
            return
        if way in ("silent", "nan"):
            norm = float(NOT_WRITTEN) if way == "silent" else float("nan")
            made = with_norms(made, [0], norm)
        if way == "bank":
            made = replace(made, bank_digest="f" * 64)
        if way != "fine":
            self.wounded.add(name)
        self.watch.observe(made)
        self.last = made

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat(self) -> None:
        """A sender that lost an acknowledgement sends again; the caller skips it."""
        assert self.last is not None
        assert self.watch.is_repeated(ENGINE, self.last.step)

    @precondition(lambda self: self.engine.requests)
    @rule(pick=st.integers(0, 3))
    def preempt(self, pick: int) -> None:
        self.engine.preempt(self.names[pick % len(self.names)])

    @precondition(lambda self: self.engine.requests)
    @rule(pick=st.integers(0, 3), way=st.sampled_from(["told", "untold", "gap"]))
    def end(self, pick: int, way: str) -> None:
        name = self.names[pick % len(self.names)]
        n_computed = self.engine.requests[name].n_computed
        has_drafts = name in self.drafted
        self.engine.release(name)
        self.engine.step += 1
        self.n_ended += 1
        if way == "gap":
            gap = self._gap(LossReason.BUFFER_FULL, 0, (), finished=(name,))
            self.ends += self.watch.record_gap(gap)
            return
        positions = {name: n_computed} if way == "told" and has_drafts else {}
        if positions and name in self.watch.live(ENGINE):
            self.told[name] = max(self.told[name], n_computed)
        self.watch.observe(
            replace(
                batch(step=self.engine.step), finished=(name,), n_positions=positions
            )
        )
        self.ends += self.watch.end(ENGINE, (name,))

    @rule()
    def evict(self) -> None:
        before = set(self.watch.live(ENGINE))
        self.ends += self.watch.evict()
        self.wounded |= before - set(self.watch.live(ENGINE))

    @invariant()
    def balanced(self) -> None:
        type(self).n_steps += 1
        if not hasattr(self, "watch"):
            return
        totals = self.watch.totals.tokens
        assert totals.is_balanced
        assert sum(self.told.values()) == totals.n_expected
        for name in self.watch.live(ENGINE):
            assert self.watch.coverage(ENGINE, name).is_balanced

    def teardown(self) -> None:
        if not hasattr(self, "watch"):
            return
        self.ends += self.watch.end_engine(ENGINE)
        summaries = [summary for _, summary in self.ends]
        totals = self.watch.totals.tokens
        assert totals.n_scored == sum(s.n_tokens_scored for s in summaries)
        assert totals.n_shadowed == sum(s.n_tokens_shadowed for s in summaries)
        for reason, n in totals.n_lost.items():
            assert n == sum(s.n_tokens_lost.get(reason, 0) for s in summaries)
        for summary in summaries:
            if summary.verdict is Verdict.SCANNED:
                assert not summary.n_tokens_lost
        for _, flag in ((s, f) for found, s in self.ends for f in found):
            assert np.isfinite(flag.score)

    def _gap(
        self,
        reason: LossReason,
        n_tokens: int,
        lost: tuple[LostRange, ...],
        **more: Any,
    ) -> Gap:
        step = self.engine.step
        return Gap(
            engine=ENGINE,
            rank=0,
            reason=reason,
            first_step=step,
            last_step=step,
            n_tokens=n_tokens,
            lost=lost,
            **more,
        )
