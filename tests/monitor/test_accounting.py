"""
Invariant: expected == scored + lost, per request and in total, whatever happens.

The reference is a set of (request, position) pairs, kept by the test.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.core import Finished, Monitor
from monitor.records import NOT_WRITTEN, Gap, LossReason, LostRange, Verdict
from tests.monitor.builders import ENGINE, Rows, batch, loud, monitor, quiet, with_norms

NAMES = ["a", "b", "c"]

Actions = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "gap", "preempt", "finish", "evict"]),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        st.integers(0, 5),  # Tokens.
        st.integers(0, 2),  # Positions that get lost on the way.
        st.sampled_from(["fine", "silent", "nan", "other bank", "activations"]),
    ),
    max_size=25,
)


@dataclass
class World:
    """
    What an engine would do, and what has to come out of it.

    Tokens get lost on the way without a word, or are told of in gaps without a name,
    but not both: nobody could tell one from the other.
    """

    is_told: bool = False

    watch: Monitor = field(default_factory=lambda: monitor(max_live_requests=2))
    step: int = 0
    next_positions: Counter[str] = field(default_factory=Counter)
    wounded: set[str] = field(default_factory=set)
    n_unlisted: int = 0
    ends: list[Finished] = field(default_factory=list)
    abandoned: list[Finished] = field(default_factory=list)

    def names_of(self, names: list[str]) -> list[str]:
        # An id is used once by an engine: an ended request comes back renamed.
        return [f"{name}{self._lives[name]}" for name in names]

    _lives: Counter[str] = field(default_factory=Counter)

    def run_step(self, names: list[str], n: int, hole: int, kind: str) -> None:
        self.step += 1
        rows = []
        hole = 0 if self.is_told else hole
        for name in self.names_of(names):
            first = self.next_positions[name] + hole
            rows.append(Rows(name, first, [loud(0), *quiet(n)][: n or 0]))
            if n:
                self.next_positions[name] = first + n
        made = batch(*rows, step=self.step, holds_activations=kind == "activations")
        n_rows = len(made.token_ids)
        if kind in ("silent", "nan") and n_rows:
            norm = float(NOT_WRITTEN) if kind == "silent" else float("nan")
            made = with_norms(made, list(range(0, n_rows, 2)), norm)
        if kind == "other bank":
            object.__setattr__(made, "bank_digest", "f" * 64)
        self.watch.observe(made)

    def preempt(self, names: list[str]) -> None:
        """Everything is computed again from the start."""
        if self.wounded & set(self.names_of(names)):
            return
        self.step += 1
        rows = [
            Rows(name, 0, quiet(self.next_positions[name]))
            for name in self.names_of(names)
        ]
        self.watch.observe(batch(*rows, step=self.step))

    def lose(self, names: list[str], n: int, hole: int, n_unlisted: int) -> None:
        self.step += 1
        lost = []
        for name in self.names_of(names):
            # Half of what a gap lists may have been counted before.
            overlap = 0 if self.is_told else hole
            first = max(0, self.next_positions[name] - overlap)
            lost.append(LostRange(request_id=name, first_position=first, n_tokens=n))
            self.next_positions[name] = max(self.next_positions[name], first + n)
        if n_unlisted:
            self.next_positions[lost[0].request_id] += n_unlisted
            self.wounded.add(lost[0].request_id)
            self.n_unlisted += n_unlisted
        self.ends += self.watch.record_gap(
            Gap(
                engine=ENGINE,
                rank=0,
                reason=LossReason.DISCONNECTED,
                first_step=self.step,
                last_step=self.step,
                n_tokens=sum(one.n_tokens for one in lost) + n_unlisted,
                lost=tuple(lost),
            )
        )

    def finish(self, names: list[str]) -> None:
        self.ends += self.watch.end(ENGINE, self.names_of(names))
        self._lives.update(names)

    @property
    def n_expected(self) -> int:
        return sum(self.next_positions.values())


@settings(max_examples=150, deadline=None)
@given(Actions, st.booleans())
def test_every_token_is_scored_or_lost_once(
    actions: list[tuple[str, list[str], int, int, str]], is_told: bool
) -> None:
    """
    However an engine cuts, repeats, loses, ends and overfills, the books balance.
    """
    world = World(is_told=is_told)
    for action, names, n, hole, kind in actions:
        if action == "step":
            world.run_step(names, n, hole, kind)
        elif action == "preempt":
            world.preempt(names)
        elif action == "gap":
            world.lose(names, n, hole, n_unlisted=hole if is_told else 0)
        elif action == "finish":
            world.finish(names)
        else:
            world.abandoned += world.watch.evict()
        totals = world.watch.totals.tokens
        assert totals.is_balanced
        assert world.n_expected == totals.n_expected
        for request_id in world.watch.live(ENGINE):
            assert world.watch.coverage(ENGINE, request_id).is_balanced

    world.abandoned += world.watch.end_engine(ENGINE)
    summaries = [summary for _, summary in (*world.ends, *world.abandoned)]
    n_scored = sum(summary.n_tokens_scored for summary in summaries)
    n_lost = sum(sum(summary.n_tokens_lost.values()) for summary in summaries)
    totals = world.watch.totals.tokens
    assert n_scored == totals.n_scored
    assert 0 <= totals.n_lost_total - n_lost <= world.n_unlisted
    cut = {summary.request_id for _, summary in world.abandoned}
    for summary in summaries:
        has_lost = bool(summary.n_tokens_lost)
        is_cut = summary.request_id in cut | world.wounded
        if summary.n_tokens_scored == 0:
            assert summary.verdict is Verdict.UNSCANNED
        elif has_lost or is_cut:
            assert summary.verdict is Verdict.PARTIAL
        elif not is_told:
            assert summary.verdict is Verdict.SCANNED
    flags = [(f.request_id, f.detector) for found, _ in world.ends for f in found]
    assert len(flags) == len(set(flags))
    for summary in summaries:
        for scores in summary.scores.values():
            assert summary.n_tokens_scored == np.count_nonzero(~np.isnan(scores))
