"""Metrics of the detector sets: which there are, and what the shadow would say."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Info

from service.daemon.loaded_set import LoadedSet
from service.daemon.swaps import SwapView


class SetMetrics:
    """Written by the ingest thread only."""

    def __init__(self, registry: CollectorRegistry) -> None:
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

        self._flags = counter("flags", "Flags the shadow would raise.", "detector")
        self._requests = counter("requests", "Requests it scored from end to end.")
        self._flagged = counter("requests_flagged", "Those that it would flag.")
        self._flagged_live = counter(
            "requests_flagged_live", "Those that the live set flagged."
        )
        self._abstentions = counter("requests_abstained", "Those it has no answer for.")
        self._shown: set[tuple[str, str, str]] = set()
        self._raised: dict[tuple[int, tuple[str, ...]], int] = {}

    def set_detectors(self, live: LoadedSet, loaded: Iterable[LoadedSet]) -> None:
        """Show which sets there are."""
        bundle = live.bundle
        self._live.info(
            {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
        )
        self._detectors.clear()
        for one in loaded:
            for detector in one.bundle.detectors:
                thresholds = one.bundle.calibration.thresholds_text(detector.name)
                self._detectors.labels(detector.name, label_of(one.digest)).info(
                    {
                        "hook_points": ",".join(
                            p.hook_point for p in detector.projections
                        ),
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

    def _raise(self, counter: Counter, value: int, *labels: str) -> None:
        key = (id(counter), labels)
        counter.labels(*labels).inc(value - self._raised.get(key, 0))
        self._raised[key] = value


def label_of(digest: str) -> str:
    """The value of the label bundle for the bundle of that digest."""
    return digest[:12]
