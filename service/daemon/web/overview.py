"""The first page: is the model watched, and what was flagged last?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.daemon.audit.filters import FlagFilter
from service.daemon.audit.rows import FlagRow, GapRow
from service.daemon.snapshot import Snapshot
from service.daemon.web.hours import Hour
from service.daemon.web.site import Site

_N_LATEST = 8

# By chance the capital of a test ever exceeds 100 with probability 1 % (Ville 1939).
DRIFT_LOG10 = 2.0

_CHART_HEIGHT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageView:
    """Of the tokens since the daemon started: which were judged."""

    n_expected: int
    n_judged: int
    lost: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float | None:
        """Judged of expected; None before any token."""
        return self.n_judged / self.n_expected if self.n_expected else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """Of the last 24 hours: requests flagged, against what was promised of benign."""

    n_requests: int
    n_flagged: int
    alpha: float | None

    @property
    def share(self) -> float | None:
        """Flagged of finished; None before any."""
        return self.n_flagged / self.n_requests if self.n_requests else None

    @property
    def spent(self) -> float | None:
        """The share in units of alpha; None where nothing is promised."""
        if self.share is None or not self.alpha:
            return None
        return self.share / self.alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One hour of the chart; heights of at most `_CHART_HEIGHT`."""

    hour: Hour
    x: float
    y: float
    height: float


def coverage_of(now: Snapshot) -> CoverageView:
    """Return what *now* says of coverage."""
    lost = sorted(now.n_tokens_lost.items(), key=lambda item: -item[1])
    return CoverageView(
        n_expected=now.n_tokens_expected,
        n_judged=now.n_tokens_scored + now.n_tokens_shadowed,
        lost=tuple((reason, n) for reason, n in lost if n),
    )


def budget_of(hours: Sequence[Hour], alpha: float | None) -> BudgetView:
    """Return how much of *alpha* was spent in *hours*."""
    return BudgetView(
        n_requests=sum(hour.requests.n_requests for hour in hours),
        n_flagged=sum(hour.requests.n_flagged for hour in hours),
        alpha=alpha,
    )


def bars_of(hours: Sequence[Hour]) -> list[Bar]:
    """Return the chart of *hours*, each 10 wide."""
    most = max((hour.total for hour in hours), default=0) or 1
    bars = []
    for i, hour in enumerate(hours):
        height = hour.total / most * _CHART_HEIGHT
        height = max(height, 2.0) if hour.total else 0.0
        bars.append(
            Bar(hour=hour, x=i * 10.0 + 1, y=_CHART_HEIGHT - height, height=height)
        )
    return bars


def worst_drift(capital: Mapping[str, float]) -> tuple[str, float]:
    """Return the detector with the most evidence of drift, and that evidence."""
    name = max(capital, key=capital.__getitem__)
    return name, capital[name]


def routes(site: Site) -> list[Route]:
    """The overview, and its part that a browser fetches again and again."""

    def overview(request: Request) -> Response:
        latest: list[FlagRow] = site.reader.find_flags(FlagFilter(), limit=_N_LATEST)
        return site.render(
            request,
            "overview",
            **_live(site, latest),
            latest=latest,
            gaps=site.reader.newest(GapRow, limit=5),
        )

    def live(request: Request) -> Response:
        latest = site.reader.find_flags(FlagFilter(), limit=1)
        return site.render(request, "overview_live", **_live(site, latest))

    return [Route("/", overview), Route("/live", live)]


def _live(site: Site, latest: Sequence[FlagRow]) -> dict[str, Any]:
    now = site.ingest.snapshot
    hours = site.hours.last()
    evidence = site.live_set().bundle.calibration.evidence
    name, capital = worst_drift(now.drift_log10_capital)
    return {
        "snapshot": now,
        "live_set": now.swaps.sets[0],
        "snapshot_model": site.live_set().bundle.identity.model,
        "coverage": coverage_of(now),
        "budget": budget_of(hours, evidence.alpha if evidence else None),
        "hours": hours,
        "bars": bars_of(hours),
        "most": max(hour.total for hour in hours),
        "n_flags": sum(hour.total for hour in hours),
        "drift_name": name,
        "drift": capital,
        "drift_limit": f"{DRIFT_LOG10:g}",
        "is_drifting": capital >= DRIFT_LOG10,
        "n_waiting": site.reader.n_waiting(),
        "last": latest[0] if latest else None,
    }
