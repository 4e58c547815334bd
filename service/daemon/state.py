"""Decides whether the daemon sees: watching, degraded, blind or waiting."""

# A pure function of what was observed, so that every rule can be tested without a
# clock. The first rule that applies wins; the order is how bad it is.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from monitor.records import LossReason


class StateName(StrEnum):
    """What an operator needs to know in one word."""

    WATCHING = "watching"
    DEGRADED = "degraded"
    BLIND = "blind"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The word, and one line that says why."""

    name: StateName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """
    What the state is decided from.

    Attributes:
        failure: Why the daemon itself stopped; "" while it runs.

        refusal: Why the last Hello was refused; "" once one was accepted.

        has_ever_connected: Whether any engine was accepted since the start.

        n_connected: Engines with an open stream.

        broken_off: Engines whose stream broke and that are waited for.

        missing_ranks: By engine, those of its ranks that are not connected.

        waiting_seconds: By engine, how long what one rank sent waits for another's.

        silent_seconds: By connected engine, time since its last message.

        n_scored: Tokens scored in the last stretch of traffic.

        n_lost: Tokens lost in it, by reason.

        is_proven: What the last heartbeat said of the tap.

        canary_failure: Why canaries did not come out; "" once they did.

        canary_problem: Why the last canaries were not answered; "" if they were.
    """

    failure: str = ""
    refusal: str = ""
    has_ever_connected: bool = False
    n_connected: int = 0
    broken_off: Sequence[str] = ()
    missing_ranks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    waiting_seconds: Mapping[str, float] = field(default_factory=dict)
    silent_seconds: Mapping[str, float] = field(default_factory=dict)
    n_scored: int = 0
    n_lost: Mapping[LossReason, int] = field(default_factory=dict)
    is_proven: bool = True
    canary_failure: str = ""
    canary_problem: str = ""


def decide(signals: Signals, blind_after_seconds: float) -> State:
    """Return the state that *signals* amount to."""
    for name, rule in _RULES:
        reason = rule(signals, blind_after_seconds)
        if reason:
            return State(name=name, reason=reason)
    return State(name=StateName.WATCHING, reason="every token is scored")


def _failure(signals: Signals, _limit: float) -> str:
    return signals.failure


def _refusal(signals: Signals, _limit: float) -> str:
    return f"engine refused: {signals.refusal}" if signals.refusal else ""


def _waiting(signals: Signals, _limit: float) -> str:
    return "" if signals.has_ever_connected else "no engine has connected yet"


def _gone(signals: Signals, _limit: float) -> str:
    return "" if signals.n_connected else "no engine is connected any more"


def _broken_off(signals: Signals, _limit: float) -> str:
    if not signals.broken_off:
        return ""
    return f"engine {signals.broken_off[0]} broke off, and is waited for"


def _rank_missing(signals: Signals, _limit: float) -> str:
    if not signals.missing_ranks:
        return ""
    engine, ranks = next(iter(signals.missing_ranks.items()))
    return f"engine {engine} sends without its pipeline stage {ranks[0]}"


def _rank_behind(signals: Signals, limit: float) -> str:
    late = {e: s for e, s in signals.waiting_seconds.items() if s > limit}
    if not late:
        return ""
    engine = max(late, key=late.__getitem__)
    return f"engine {engine}: a pipeline stage tells nothing for more than {limit:g} s"


def _silent(signals: Signals, limit: float) -> str:
    silent = {e: s for e, s in signals.silent_seconds.items() if s > limit}
    if not silent:
        return ""
    engine = max(silent, key=silent.__getitem__)
    return f"engine {engine} is silent for more than {limit:g} s"


def _nothing_scored(signals: Signals, _limit: float) -> str:
    lost = _blameworthy(signals)
    if signals.n_scored or not lost:
        return ""
    return f"no token is scored: {max(lost, key=lost.__getitem__)}"


def _canary_failed(signals: Signals, _limit: float) -> str:
    return f"canaries: {signals.canary_failure}" if signals.canary_failure else ""


def _canary_unanswered(signals: Signals, _limit: float) -> str:
    if not signals.canary_problem:
        return ""
    return f"canaries were not answered: {signals.canary_problem}"


def _unproven(signals: Signals, _limit: float) -> str:
    return "" if signals.is_proven else "the engine could not prove its tap"


def _some_lost(signals: Signals, _limit: float) -> str:
    lost = _blameworthy(signals)
    if not lost:
        return ""
    n_lost = sum(lost.values())
    worst = max(lost, key=lost.__getitem__)
    return f"{n_lost} of {n_lost + signals.n_scored} tokens lost, most: {worst}"


def _blameworthy(signals: Signals) -> dict[LossReason, int]:
    # The prefix cache working is not a fault; such requests are PARTIAL each.
    return {
        reason: n
        for reason, n in signals.n_lost.items()
        if n and reason is not LossReason.PREFIX_CACHED
    }


_RULES: tuple[tuple[StateName, Callable[[Signals, float], str]], ...] = (
    (StateName.BLIND, _failure),
    (StateName.BLIND, _refusal),
    (StateName.WAITING, _waiting),
    (StateName.BLIND, _gone),
    (StateName.BLIND, _rank_missing),
    (StateName.BLIND, _rank_behind),
    (StateName.BLIND, _silent),
    (StateName.BLIND, _nothing_scored),
    (StateName.BLIND, _canary_failed),
    (StateName.DEGRADED, _broken_off),
    (StateName.DEGRADED, _unproven),
    (StateName.DEGRADED, _canary_unanswered),
    (StateName.DEGRADED, _some_lost),
)
