"""Counts what was expected, what was scored, and what was lost and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from monitor.records import Abstention, LossReason, Verdict


@dataclass(slots=True)
class Coverage:
    """
    Token counts of one request, or of all of them.

    *n_expected* is counted from positions; *n_scored* and *n_lost* from rows, and
    *n_shadowed* from what was found of tokens that had none. That they agree
    (`is_balanced`) is the promise that nothing is lost silently.
    """

    n_expected: int = 0
    n_scored: int = 0
    n_shadowed: int = 0
    n_lost: dict[LossReason, int] = field(
        default_factory=lambda: dict.fromkeys(LossReason, 0)
    )

    @property
    def n_lost_total(self) -> int:
        """Tokens lost for any reason."""
        return sum(self.n_lost.values())

    @property
    def n_judged(self) -> int:
        """Tokens that the detectors have said something of."""
        return self.n_scored + self.n_shadowed

    @property
    def is_balanced(self) -> bool:
        """Whether every expected token was judged or lost, and only once."""
        return self.n_expected == self.n_judged + self.n_lost_total

    @property
    def verdict(self) -> Verdict:
        """How much was judged; nothing expected is nothing scanned."""
        if self.n_judged == 0:
            return Verdict.UNSCANNED
        return Verdict.PARTIAL if self.n_lost_total else Verdict.SCANNED

    def copy_lost(self) -> Mapping[LossReason, int]:
        """Return the reasons that lost something, with how much."""
        return {reason: n for reason, n in self.n_lost.items() if n}


@dataclass(slots=True)
class Totals:
    """
    Counters over the monitor's whole life. They only rise.

    Attributes:
        tokens: Expected, scored, shadowed, lost by reason.

        n_repeated: Rows that were computed again after a preemption, and skipped.

        n_requests: Finished requests by verdict.

        n_flags: Flags by detector.

        n_evicted: Requests finished because too many were live.

        n_abstentions: Finished requests that got no answer, by why.

        n_discoveries: Finished requests that are discoveries.
    """

    tokens: Coverage = field(default_factory=Coverage)
    n_repeated: int = 0
    n_requests: dict[Verdict, int] = field(
        default_factory=lambda: dict.fromkeys(Verdict, 0)
    )
    n_flags: dict[str, int] = field(default_factory=dict)
    n_evicted: int = 0
    n_abstentions: dict[Abstention, int] = field(
        default_factory=lambda: dict.fromkeys(Abstention, 0)
    )
    n_discoveries: int = 0
