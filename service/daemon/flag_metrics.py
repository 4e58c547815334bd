"""Metrics of what detectors said: flags, margins, drift, by detector, bundle, model."""

from collections import OrderedDict
from collections.abc import Iterable
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitor.records import Flag, RequestSummary
from service.daemon.bounded_labels import OTHER, BoundedLabels
from service.daemon.loaded_set import LoadedSet
from service.daemon.model_names import ModelNames

# Detectors differ in their units (logits, squared distances): powers of 8 both ways.
_MARGIN_BUCKETS = tuple(sorted([0.0, *(s * 8.0**i for s in (-1, 1) for i in range(4))]))
_OF = ("detector", "bundle")
# Series: 112 of flags, 32 * 12 of margins, 64 of drift. See rule 2 of `metrics`.
_MOST_FLAGS, _MOST_MARGINS, _MOST_DRIFTS = 112, 32, 64
_MOST_REMEMBERED = 8192  # Flagged requests, so that each counts once.
_EXEMPLAR = "request_id"
_MOST_EXEMPLAR = 128 - len(_EXEMPLAR)  # Characters: OpenMetrics 1.0, "Exemplars".


class FlagMetrics:
    """Written by the ingest thread only."""

    def __init__(
        self, registry: CollectorRegistry, models: ModelNames, folded: Counter
    ) -> None:
        """*folded* counts label sets that found no room, by metric."""
        self._models = models
        self._flags = BoundedLabels(
            Counter(
                "innerwatch_flags",
                "Flags, durable in the record.",
                (*_OF, "model_name"),
                registry=registry,
            ),
            _MOST_FLAGS,
            folded.labels("innerwatch_flags_total"),
        )
        self._margins = BoundedLabels(
            Histogram(
                "innerwatch_score_margin",
                "How far each finished request was above its boundary; "
                "flagged above 0.",
                _OF,
                buckets=_MARGIN_BUCKETS,
                registry=registry,
            ),
            _MOST_MARGINS,
            folded.labels("innerwatch_score_margin"),
        )
        self._drift = Gauge(
            "innerwatch_drift_log10_capital",
            "Evidence that a detector's scores drifted; by chance ever above n with "
            "probability 10^-n.",
            _OF,
            registry=registry,
        )
        self._requests = Counter(
            "innerwatch_requests_flagged",
            "Requests with a flag, counted at their first.",
            registry=registry,
        )
        self._budget = Gauge(
            "innerwatch_flag_budget_ratio",
            "Of benign requests, the share that the live set may flag; NaN: nothing "
            "is promised.",
            registry=registry,
        )
        self._flagged: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._sets: list[LoadedSet] = []
        self._drifting = self._live = ""

    def set_detectors(self, live: LoadedSet, loaded: Iterable[LoadedSet]) -> None:
        """Export the label sets of the *loaded* sets, those of the *live* one first."""
        evidence = live.bundle.calibration.evidence
        self._budget.set(nan if evidence is None else evidence.alpha)
        kept = label_of(live.digest)
        for bounded in (self._flags, self._margins):
            bounded.may_forget = lambda values: values[1] != kept
            if live.digest != self._live:
                bounded.make_room(len(live.bundle.detectors))
        self._live = live.digest
        self._sets = [live, *(one for one in loaded if one.digest != live.digest)]
        for one in self._sets:
            for detector in one.bundle.detectors:
                self._margins.add(detector.name, label_of(one.digest))
        self.set_models()

    def set_models(self) -> None:
        """Export a counter for each model that is served."""
        models = self._models.shown
        self._flags.remove_where(lambda values: values[2] == "" and "" not in models)
        for one in self._sets:
            for detector in one.bundle.detectors:
                for model in models:
                    self._flags.add(detector.name, label_of(one.digest), model)

    def set_drift(self, live: LoadedSet, capital: NDArray[np.float64]) -> None:
        """Show the capital of each detector's drift test, in the live set's order."""
        if self._drifting != live.digest:
            self._drift.clear()
            self._drifting = live.digest
        names = [detector.name for detector in live.bundle.detectors]
        shown = dict(zip(names, np.log10(capital).tolist(), strict=True))
        for name in names[_MOST_DRIFTS:]:
            shown[OTHER] = max(shown.pop(name), shown.get(OTHER, -np.inf))
        for name, value in shown.items():
            self._drift.labels(name, label_of(live.digest)).set(value)

    def count_flags(self, flags: Iterable[Flag]) -> None:
        """Count flags that are in the record."""
        for flag in flags:
            model = self._models.of(flag.engine)
            child = self._flags.of(flag.detector, label_of(flag.bundle_digest), model)
            child.inc(exemplar={_EXEMPLAR: flag.request_id[:_MOST_EXEMPLAR]})
            request = (flag.engine, flag.request_id)
            self._requests.inc(request not in self._flagged)
            self._flagged[request] = None
            self._flagged.move_to_end(request)
            if len(self._flagged) > _MOST_REMEMBERED:
                self._flagged.popitem(last=False)

    def count_summaries(self, summaries: Iterable[RequestSummary]) -> None:
        """Observe the margins of finished requests that had any."""
        for summary in summaries:
            bundle = label_of(summary.bundle_digest)
            for detector, margin in summary.margins.items():
                if isfinite(margin):
                    self._margins.of(detector, bundle).observe(margin)


def label_of(digest: str) -> str:
    """The value of the label bundle for the bundle of that digest."""
    return digest[:12]
