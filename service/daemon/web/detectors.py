"""The detector sets: versions, what was promised of them, and the shadow."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from probes.calibration import CalibrationEvidence
from service.daemon.detector_sets import SetState
from service.daemon.loaded_set import LoadedSet
from service.daemon.snapshot import Snapshot
from service.daemon.swaps import SetView
from service.daemon.web.overview import DRIFT_LOG10, budget_of
from service.daemon.web.site import Site

STATES = {
    SetState.LIVE: "scores every request that begins",
    SetState.SHADOW: "scores the same tokens beside the live set, and flags nothing",
    SetState.COMING: "goes live as soon as every engine computes its columns",
    SetState.RETIRING: "scores the requests that began under it, to their end",
    SetState.PREVIOUS: "was live before: a rollback goes back to it",
    SetState.LOADED: "is loaded, and does nothing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorLine:
    """
    One detector of a set.

    Attributes:
        reads: Its hook points.

        thresholds: Boundary at a request's end, for people.

        share: Of alpha; None where nothing is promised.

        n_flags: Since the daemon started: of the live set flags, of a shadow those
            that it would have raised.

        drift: log10 of its drift test's capital; None but for the live set's.
    """

    name: str
    family: str
    aggregator: str
    reads: str
    thresholds: str
    is_gate: bool
    share: float | None
    n_flags: int | None
    drift: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetPage:
    """One set, with its detectors."""

    view: SetView
    says: str
    version: str
    model: str
    evidence: CalibrationEvidence | None
    detectors: tuple[DetectorLine, ...]


def set_page(view: SetView, one: LoadedSet, now: Snapshot) -> SetPage:
    """Return what is known of a set at the moment *now*."""
    bundle = one.bundle
    return SetPage(
        view=view,
        says=STATES[view.state],
        version=f"{bundle.name} {bundle.version}",
        model=bundle.identity.model,
        evidence=bundle.calibration.evidence,
        detectors=_lines(view, one, now),
    )


def routes(site: Site) -> list[Route]:
    """The page of all loaded sets."""

    def detectors(request: Request) -> Response:
        now = site.ingest.snapshot
        loaded = site.loaded()
        evidence = site.live_set().bundle.calibration.evidence
        return site.render(
            request,
            "detectors",
            sets=[
                set_page(view, loaded[view.name], now)
                for view in now.swaps.sets
                if view.name in loaded
            ],
            swaps=now.swaps,
            drift_limit=DRIFT_LOG10,
            budget=budget_of(site.hours.last(), evidence.alpha if evidence else None),
        )

    return [Route("/detectors", detectors)]


def _lines(view: SetView, one: LoadedSet, now: Snapshot) -> tuple[DetectorLine, ...]:
    calibration = one.bundle.calibration
    is_live = view.state is SetState.LIVE
    n_flags = now.n_flags if is_live else view.tally.n_flags if view.tally else {}
    shares = calibration.evidence.shares if calibration.evidence else ()
    return tuple(
        DetectorLine(
            name=detector.name,
            family=type(detector).__name__,
            aggregator=detector.aggregator.name,
            reads=", ".join(sorted({p.hook_point for p in detector.projections})),
            thresholds=calibration.thresholds_text(detector.name),
            is_gate=detector.name in calibration.gates,
            share=shares[i] if shares else None,
            n_flags=n_flags.get(detector.name),
            drift=now.drift_log10_capital.get(detector.name) if is_live else None,
        )
        for i, detector in enumerate(one.bundle.detectors)
    )
