"""One moment of the daemon, for threads that must not touch the monitor."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from monitor.core import Monitor
from service.daemon.state import State
from service.daemon.swaps import SwapView


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was true at one moment. Counts by reason, verdict and detector."""

    state: State
    n_tokens_expected: int
    n_tokens_scored: int
    n_tokens_shadowed: int
    n_tokens_lost: Mapping[str, int]
    n_requests: Mapping[str, int]
    n_flags: Mapping[str, int]
    n_live_requests: int
    n_engines: int
    last_batch_at: float
    n_abstentions: Mapping[str, int]
    n_discoveries: int
    drift_log10_capital: Mapping[str, float]
    swaps: SwapView


def snapshot_of(
    monitor: Monitor,
    state: State,
    last_batch_at: float,
    swaps: SwapView,
    *,
    n_engines: int,
) -> Snapshot:
    """Copy what *monitor* counts; *last_batch_at* is seconds since the epoch."""
    totals = monitor.totals
    names = monitor.sets.now.names
    return Snapshot(
        state=state,
        n_tokens_expected=totals.tokens.n_expected,
        n_tokens_scored=totals.tokens.n_scored,
        n_tokens_shadowed=totals.tokens.n_shadowed,
        n_tokens_lost={str(r): n for r, n in totals.tokens.n_lost.items()},
        n_requests={str(v): n for v, n in totals.n_requests.items()},
        n_flags=dict.fromkeys(names, 0) | totals.n_flags,
        n_live_requests=monitor.n_live_requests,
        n_engines=n_engines,
        last_batch_at=last_batch_at,
        n_abstentions={str(a): n for a, n in totals.n_abstentions.items()},
        n_discoveries=totals.n_discoveries,
        drift_log10_capital=dict(
            zip(names, np.log10(monitor.drift).tolist(), strict=True)
        ),
        swaps=swaps,
    )
