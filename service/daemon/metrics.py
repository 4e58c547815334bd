# Rule 1: no label is a request id. The id of the latest flag's request is an exemplar,
# which is no series.
#
# Rule 2: at most 1,000 series, whatever engines and operators send: every label whose
# values come from outside is a `BoundedLabels`.
"""The daemon's metrics. Names follow Prometheus' practices."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from monitor.canaries import CanaryResult, CanaryVerdict
from monitor.coverage import Totals
from monitor.records import Abstention, Flag, LossReason, RequestSummary, Verdict
from service.daemon.drills import Drill
from service.daemon.flag_metrics import FlagMetrics
from service.daemon.loaded_set import LoadedSet
from service.daemon.model_names import ModelNames
from service.daemon.set_metrics import SetMetrics
from service.daemon.state import State, StateName
from service.daemon.swaps import SwapView

# From a decode step of a few requests to a long prefill.
_SCORING_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)
# From one decode step to a queue that has been full for a while.
_LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_Label = TypeVar("_Label", bound=str)


class Metrics:
    """
    Everything that is exported. Written by the ingest thread only.

    Every label value that is known at start is exported from the start. The label
    bundle is the first 12 digits of the digest of the set that said it, model_name is
    vLLM's.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        live: LoadedSet,
        *,
        version: str,
        queue_batches: int,
    ) -> None:
        reasons, verdicts = [r.value for r in LossReason], [v.value for v in Verdict]

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"innerwatch_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"innerwatch_{name}", text, labels, registry=registry)

        self._expected = counter("tokens_expected", "Tokens that engines scheduled.")
        self._scored = counter("tokens_scored", "Tokens scored by every detector.")
        self._shadowed = counter(
            "tokens_shadowed", "Tokens from the prefix cache, judged as when computed."
        )
        self._lost = counter("tokens_lost", "Tokens without a score.", "reason")
        self._repeated = counter("tokens_repeated", "Rows computed again, skipped.")
        self._requests = counter("requests", "Finished requests.", "verdict")
        self._evicted = counter("requests_evicted", "Finished for being too many.")
        self._abstentions = counter(
            "requests_abstained", "Scored requests without an answer.", "reason"
        )
        self._discoveries = counter(
            "discoveries", "Requests at the false discovery rate that was set."
        )
        self._gaps = counter("gaps", "Gaps that were recorded.", "reason")
        self._batches_repeated = counter("batches_repeated", "Sent again, skipped.")
        self._batches_refused = counter("batches_refused", "Malformed messages.")
        self._hellos_refused = counter("hellos_refused", "Engines turned away.")
        self._lag = Histogram(
            "innerwatch_ingest_lag_seconds",
            "From capture, by the engine's clock, to scored and durable.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self._scoring = Histogram(
            "innerwatch_scoring_duration_seconds",
            "Time to score one batch with every detector.",
            buckets=_SCORING_BUCKETS,
            registry=registry,
        )
        self._canaries = counter("canaries", "Runs of canaries.", "result")
        self._canary_difference = gauge(
            "canary_difference", "How far the last canaries' columns were from theirs."
        )
        self._canary_passed = gauge(
            "canary_passed_timestamp_seconds", "When canaries last came out right."
        )
        self._drills = counter("drills", "Drills, durable in the record; no flags.")
        self._drill_planted = gauge("drill_timestamp_seconds", "The last drill's.")
        self._queue = gauge("ingest_queue_batches", "Messages waiting to be scored.")
        self._queue_limit = gauge("ingest_queue_limit_batches", "Room for them.")
        self._live = gauge("live_requests", "Requests that have not ended.")
        self._engines = gauge("engines_connected", "Engines with an open stream.")
        self._last_batch = gauge("last_batch_timestamp_seconds", "Last batch scored.")
        self._state = gauge("state", "1 for the state the daemon is in.", ("state",))
        self._queue_limit.set(queue_batches)
        self._raised: dict[tuple[str, ...], int] = {}
        _init(self._lost, reasons)
        _init(self._gaps, reasons)
        _init(self._requests, verdicts)
        _init(self._canaries, [v.value for v in CanaryVerdict])
        _init(self._abstentions, [a.value for a in Abstention])
        build = Info("innerwatch_build", "This program.", registry=registry)
        build.info({"version": version})
        folded = counter(
            "label_sets_folded", "Counted as other: no room for labels.", "metric"
        )
        self._models = ModelNames(registry)
        self._said = FlagMetrics(registry, self._models, folded)
        self._sets = SetMetrics(registry, folded)
        self.set_detectors(live, [live])
        self.set_drift(live, np.ones(len(live.bundle.detectors)))

    def set_totals(self, totals: Totals) -> None:
        """Raise the counters to the monitor's *totals*, which only rise."""
        tokens = totals.tokens
        self._raise(self._expected, tokens.n_expected)
        self._raise(self._scored, tokens.n_scored)
        self._raise(self._shadowed, tokens.n_shadowed)
        self._raise(self._repeated, totals.n_repeated)
        self._raise(self._evicted, totals.n_evicted)
        self._raise_each(self._lost, tokens.n_lost)
        self._raise_each(self._requests, totals.n_requests)
        self._raise_each(self._abstentions, totals.n_abstentions)
        self._raise(self._discoveries, totals.n_discoveries)

    def set_detectors(self, live: LoadedSet, loaded: Iterable[LoadedSet]) -> None:
        """Show which sets there are."""
        loaded = list(loaded)
        self._sets.set_detectors(live, loaded)
        self._said.set_detectors(live, loaded)

    def see_engine(self, engine: str, model_name: str) -> None:
        """Note what the model of an accepted engine is called."""
        if self._models.see(engine, model_name):
            self._said.set_models()

    def set_sets(self, view: SwapView) -> None:
        """Show what each set does, and what the shadow would have said."""
        self._sets.set_view(view)

    def set_drift(self, live: LoadedSet, capital: NDArray[np.float64]) -> None:
        """Show the capital of each detector's drift test, in the live set's order."""
        self._said.set_drift(live, capital)

    def count_flags(self, flags: Iterable[Flag]) -> None:
        """Count flags that are in the record."""
        self._said.count_flags(flags)

    def count_summaries(self, summaries: Iterable[RequestSummary]) -> None:
        """Observe the margins of finished requests that had any."""
        self._said.count_summaries(summaries)

    def count_canary(self, result: CanaryResult, now: float) -> None:
        """Count a run of canaries that ended *now*, seconds since the epoch."""
        self._canaries.labels(result.verdict.value).inc()
        if not isnan(result.difference):
            self._canary_difference.set(result.difference)
        if result.verdict is CanaryVerdict.PASSED:
            self._canary_passed.set(now)

    def count_drills(self, drills: Sequence[Drill]) -> None:
        """Count drills that are in the record."""
        self._drills.inc(len(drills))
        for drill in drills:
            self._drill_planted.set(drill.planted_at)

    def count_gap(self, reason: LossReason) -> None:
        """Count one recorded gap."""
        self._gaps.labels(reason.value).inc()

    def count_messages(
        self, *, n_repeated: int, n_refused: int, n_hellos_refused: int
    ) -> None:
        """Count messages that were not scored for what they are."""
        self._batches_repeated.inc(n_repeated)
        self._batches_refused.inc(n_refused)
        self._hellos_refused.inc(n_hellos_refused)

    def observe_times(self, lags: Iterable[float], scoring: Iterable[float]) -> None:
        """Observe seconds a batch; clocks that disagree can not make a lag negative."""
        for seconds in lags:
            self._lag.observe(max(0.0, seconds))
        for seconds in scoring:
            self._scoring.observe(seconds)

    def set_gauges(
        self,
        *,
        n_queued: int,
        n_live_requests: int,
        n_engines: int,
        last_batch_at: float,
    ) -> None:
        """Set what goes up and down; *last_batch_at* is seconds since the epoch."""
        self._queue.set(n_queued)
        self._live.set(n_live_requests)
        self._engines.set(n_engines)
        self._last_batch.set(last_batch_at)

    def set_state(self, state: State) -> None:
        """Set one state to 1 and the others to 0."""
        for name in StateName:
            self._state.labels(name.value).set(name is state.name)

    def _raise(self, counter: Counter, value: int, *labels: str) -> None:
        key = (str(id(counter)), *labels)
        child = counter.labels(*labels) if labels else counter
        child.inc(value - self._raised.get(key, 0))
        self._raised[key] = value

    def _raise_each(self, counter: Counter, values: Mapping[_Label, int]) -> None:
        for label, value in values.items():
            self._raise(counter, value, str(label))


def _init(counter: Counter, labels: Iterable[str]) -> None:
    for label in labels:
        counter.labels(label)
