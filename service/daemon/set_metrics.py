"""Metrics of the detector sets: which there are, and what the shadow would say."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Info

from service.daemon.bounded_labels import BoundedLabels
from service.daemon.detector_sets import MAX_SETS
from service.daemon.flag_metrics import label_of
from service.daemon.loaded_set import LoadedSet
from service.daemon.swaps import SwapView

_MOST_DETECTORS, _MOST_SHADOWS = 64, 48  # Series; see rule 2 of `metrics`.


class SetMetrics:
    """Written by the ingest thread only."""

    def __init__(self, registry: CollectorRegistry, folded: Counter) -> None:
        """*folded* counts label sets that found no room, by metric."""
        self._live = Info(
            "innerwatch_bundle", "The live detectors' bundle.", registry=registry
        )
        self._detectors = Info(
            "innerwatch_detector",
            "One detector of a loaded set.",
            ("detector", "bundle"),
            registry=registry,
        )
        self._states = Gauge(
            "innerwatch_detector_set",
            "1 for each loaded detector set and what it does.",
            ("name", "digest", "state"),
            registry=registry,
        )

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(
                f"innerwatch_shadow_{name}",
                text,
                (*labels, "bundle"),
                registry=registry,
            )

        def bounded(name: str, text: str, *labels: str) -> BoundedLabels[Counter]:
            return BoundedLabels(
                counter(name, text, *labels),
                _MOST_SHADOWS if labels else MAX_SETS,
                folded.labels(f"innerwatch_shadow_{name}_total"),
            )

        self._flags = bounded("flags", "Flags the shadow would raise.", "detector")
        self._requests = bounded("requests", "Requests it scored from end to end.")
        self._flagged = bounded("requests_flagged", "Those that it would flag.")
        self._flagged_live = bounded(
            "requests_flagged_live", "Those that the live set flagged."
        )
        self._abstentions = bounded("requests_abstained", "Those it has no answer for.")
        self._shown: set[tuple[str, str, str]] = set()
        self._loaded: set[str] = set()
        self._raised: dict[tuple[int, tuple[str, ...]], int] = {}

    def set_detectors(self, live: LoadedSet, loaded: Iterable[LoadedSet]) -> None:
        """Show which sets there are."""
        bundle = live.bundle
        self._live.info(
            {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
        )
        self._detectors.clear()
        sets = [live, *(one for one in loaded if one.digest != live.digest)]
        shown = [(one, d) for one in sets for d in one.bundle.detectors]
        for one, detector in shown[:_MOST_DETECTORS]:
            thresholds = one.bundle.calibration.thresholds_text(detector.name)
            self._detectors.labels(detector.name, label_of(one.digest)).info(
                {
                    "hook_points": ",".join(p.hook_point for p in detector.projections),
                    "aggregator": detector.aggregator.name,
                    "thresholds": thresholds,
                }
            )

    def set_view(self, view: SwapView) -> None:
        """Show what each set does, and raise the counters of those that were shadow."""
        states = {(one.name, one.digest, one.state.value) for one in view.sets}
        for gone in self._shown - states:
            self._states.remove(*gone)
        for new in states - self._shown:
            self._states.labels(*new).set(1)
        self._shown = states
        self._forget({label_of(one.digest) for one in view.sets})
        for one in view.sets:
            tally = one.tally
            if tally is None:
                continue
            bundle = label_of(one.digest)
            self._raise(self._requests, tally.n_requests, bundle)
            self._raise(self._flagged, tally.n_requests_flagged, bundle)
            self._raise(self._flagged_live, tally.n_flagged_live, bundle)
            self._raise(self._abstentions, tally.n_abstentions, bundle)
            for detector, n in tally.n_flags.items():
                self._raise(self._flags, n, detector, bundle)

    def _forget(self, loaded: set[str]) -> None:
        """End the series of bundles that are not loaded any more."""
        if loaded >= self._loaded:
            self._loaded = loaded
            return
        self._loaded = loaded
        for bounded in (
            self._flags,
            self._requests,
            self._flagged,
            self._flagged_live,
            self._abstentions,
        ):
            bounded.remove_where(lambda values: values[-1] not in loaded)
        self._raised = {k: n for k, n in self._raised.items() if k[1][-1] in loaded}

    def _raise(self, counter: BoundedLabels[Counter], value: int, *labels: str) -> None:
        key = (id(counter), labels)
        by = value - self._raised.get(key, 0)
        if by or key not in self._raised:
            counter.of(*labels).inc(by)
            self._raised[key] = value
