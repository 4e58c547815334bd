"""Gathers what the daemon's state is decided from."""

from service.daemon.canary_watch import CanaryWatch
from service.daemon.engines import Engines
from service.daemon.joining import Joining
from service.daemon.recent import RecentCoverage
from service.daemon.state import Signals


def signals_of(
    engines: Engines,
    joining: Joining,
    recent: RecentCoverage,
    canaries: CanaryWatch,
    *,
    failure: str,
    now: float,
    blind_after_seconds: float,
) -> Signals:
    """
    Return what is known *now*, by the clock of *engines*.

    *failure* says why the daemon itself stopped, "" while it runs.
    """
    return Signals(
        failure=failure,
        refusal=engines.refusal(now - blind_after_seconds),
        has_ever_connected=engines.has_ever_connected,
        n_connected=engines.n_connected,
        broken_off=engines.broken_off,
        missing_ranks=engines.missing(joining.ranks),
        waiting_seconds={
            engine: now - since for engine, since in joining.waiting_since().items()
        },
        silent_seconds=engines.silent_seconds(now),
        n_scored=recent.n_scored,
        n_lost=recent.n_lost,
        is_proven=engines.is_proven,
        canary_failure=canaries.failure,
        canary_problem=canaries.problem,
    )
