"""What Prometheus scrapes: names, labels, exemplars, and how much of it there is."""

import re
import shutil
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, generate_latest

from monitor.records import Flag, RequestSummary, Verdict
from probes.aggregate import Max
from service.daemon.audit.log import LogFacts
from service.daemon.audit_metrics import AuditMetrics, DiskMetrics
from service.daemon.bounded_labels import BoundedLabels
from service.daemon.flag_metrics import label_of
from service.daemon.loaded_set import LoadedSet
from service.daemon.metrics import Metrics
from tests.alerts.pages import openmetrics, series
from tests.alerts.programs import promtool
from tests.monitor.builders import LATE, Rows, loud, probe, quiet
from tests.service.builders import RunningDaemon, eventually
from tests.service.swapping import Engine, saved_bundle

MOST_SERIES = 1000


def many(folder: Path, n_detectors: int, version: str) -> LoadedSet:
    """A bundle with that many detectors, whose names no two versions share."""
    detectors = [
        probe(f"detector-{version}-{i}", LATE, i % 4, Max()) for i in range(n_detectors)
    ]
    return LoadedSet.read(saved_bundle(folder, version=version, detectors=detectors))


def flag(engine: str, request_id: str, detector: str, digest: str = "") -> Flag:
    return Flag(
        engine=engine,
        request_id=request_id,
        detector=detector,
        score=3.0,
        threshold=2.0,
        position=0,
        bank_digest="",
        scores=np.empty(0, np.float32),
        token_ids=np.empty(0, np.int32),
        bundle_digest=digest,
    )


def summary(one: Flag) -> RequestSummary:
    return RequestSummary(
        engine=one.engine,
        request_id=one.request_id,
        verdict=Verdict.SCANNED,
        n_prompt_tokens=1,
        n_tokens_scored=1,
        n_tokens_lost={},
        statistics={},
        flagged_by=(one.detector,),
        margins={one.detector: 1.0},
        bundle_digest=one.bundle_digest,
    )


class TestNames:
    def test_pass_promtool(self, own_daemon: RunningDaemon, engine: Engine) -> None:
        """
        Prometheus' own linter has nothing to say against the page of a daemon that has
        an engine and a flag.
        """
        engine.step(Rows("a", 0, [loud(0)]), finished=("a",))
        eventually(
            lambda: own_daemon.metric("innerwatch_flags_total") == 1, "a flag counts"
        )

        checked = promtool("check", "metrics", given=own_daemon.get())

        assert (0, "", "") == (checked.returncode, checked.stdout, checked.stderr)

    def test_of_the_record_pass_promtool(self, tmp_path: Path) -> None:
        """
        So do those that a record fills in.
        """
        registry = CollectorRegistry()
        metrics = AuditMetrics(registry)
        metrics.set_log(LogFacts(size=7, root_prefix=(1 << 48) - 1, signed_at=1e9))
        metrics.set_verified(True)
        page = generate_latest(registry).decode()

        checked = promtool("check", "metrics", given=page)

        assert 4 == len(series(page))
        assert (0, "", "") == (checked.returncode, checked.stdout, checked.stderr)


class TestLabels:
    def test_model_name_is_the_engines(
        self, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        Flags carry the name that vLLM puts on its own metrics, from zero on.
        """
        of_max = 'innerwatch_flags_total{detector="max",model_name="tiny-chat"}'
        eventually(lambda: "tiny-chat" in own_daemon.get(), "the model is known")
        assert 0 == own_daemon.metric(of_max)
        assert 'model_name=""' not in own_daemon.get()

        engine.step(Rows("a", 0, [loud(0)]), finished=("a",))

        eventually(lambda: 1 == own_daemon.metric(of_max), "counted for its model")
        assert 1 == own_daemon.metric('innerwatch_model_info{model_name="tiny-chat"}')

    def test_an_engine_without_a_name_has_its_models(
        self, own_daemon: RunningDaemon
    ) -> None:
        """
        Where vLLM says no name, the model's path is the label, as vLLM has it.
        """
        with Engine(own_daemon.place.address) as unnamed:
            unnamed.hello()

            eventually(
                lambda: 'innerwatch_model_info{model_name="tiny"}' in own_daemon.get(),
                "the model is known",
            )


class TestFlaggedRequests:
    def test_count_once_however_many_detectors_flag(
        self, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        The budget is of requests: two flags of one request are one, at its first.
        """
        engine.step(Rows("a", 0, [loud(0)]), Rows("b", 0, quiet(1)))
        engine.step(Rows("a", 1, [loud(1, 100.0)]), finished=("a", "b"))

        eventually(
            lambda: own_daemon.metric("innerwatch_flags_total") == 2, "all flags count"
        )
        assert 1 == own_daemon.metric("innerwatch_requests_flagged_total")


class TestExemplars:
    def test_show_the_request_of_the_latest_flag(
        self, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        A counter of flags leads to a request, and no label does.
        """
        for name in ("first", "second"):
            engine.step(Rows(name, 0, [loud(0)]), finished=(name,))
        line = re.compile(
            r'innerwatch_flags_total\{.*detector="max".*\} 2\.0 # '
            r'\{request_id="second"\} 1\.0 '
        )

        eventually(
            lambda: bool(line.search(openmetrics(own_daemon.url))), "the exemplar"
        )
        assert "request_id" not in own_daemon.get()

    def test_hold_at_most_128_characters(
        self, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        A request id of any length, with any characters, breaks nothing.
        """
        long = 'ü"\\\n' * 64
        engine.step(Rows(long, 0, [loud(0)]), finished=(long,))
        eventually(
            lambda: own_daemon.metric("innerwatch_flags_total") >= 1, "it counts"
        )

        page = openmetrics(own_daemon.url)

        found = re.search(r'# \{request_id="((?:[^"\\]|\\.)*)"\}', page)
        assert found is not None
        shown = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], found[1])
        assert long[:118] == shown


class TestHowMuch:
    def test_at_most_1000_series_of_hostile_names(self, tmp_path: Path) -> None:
        """
        500 engines with a model each, 60 swaps between sets of 70 detectors, flags
        and ends of requests of all of them: no more series, and none uncounted.
        """
        registry = CollectorRegistry()
        sets = [many(tmp_path, 70, str(i)) for i in range(6)]
        metrics = Metrics(registry, sets[0], version="0", queue_batches=1)
        DiskMetrics(registry, tmp_path)
        record = AuditMetrics(registry)
        record.set_log(LogFacts(size=1, root_prefix=1, signed_at=1))
        record.set_verified(True)
        n_flags, most = 0, 0
        for i in range(500):
            metrics.see_engine(f"engine-{i}", f'model "{i}"\n\\')
        for i in range(60):
            live = sets[i % 6]
            metrics.set_detectors(live, sets)
            metrics.set_drift(live, np.full(70, 10.0))
            for j, detector in enumerate(live.bundle.detectors):
                one = flag(f"engine-{j}", f"r{i}-{j}", detector.name, live.digest)
                metrics.count_flags([one])
                metrics.count_summaries([summary(one)])
                n_flags += 1
            most = max(most, len(series(generate_latest(registry).decode())))

        page = generate_latest(registry).decode()
        counted = re.search(r"^innerwatch_requests_flagged_total (.*)$", page, re.M)
        assert counted is not None
        assert n_flags == float(counted[1])
        assert most <= MOST_SERIES
        assert 'metric="innerwatch_flags_total"' in page
        assert 0 == promtool("check", "metrics", given=page).returncode

    def test_at_most_1000_series_of_a_daemon(
        self, own_daemon: RunningDaemon, tmp_path: Path
    ) -> None:
        """
        A real daemon with all the sets that it loads, of 70 detectors each, three of
        them live one after the other, and with 100 engines of other models.
        """
        with Engine(own_daemon.place.address) as engine:
            engine.hello(k_max=300)
            engine.beat()
            for i in range(15):
                many(tmp_path, 70, str(i))
                engine.load(tmp_path / f"other-{i}")
            for i in range(3):
                _go_live(engine, f"other:{i}")
                engine.step(Rows(f"r{i}", 0, [[9.0] * 4]), finished=(f"r{i}",))
            for i in range(100):
                with Engine(own_daemon.place.address, f"engine-{i}") as one:
                    one.hello(served_model_name=f"model-{i}", k_max=300)
            eventually(lambda: 'model_name="other"' in own_daemon.get(), "all known")

            assert len(series(own_daemon.get())) <= MOST_SERIES
            assert 3 == own_daemon.metric("innerwatch_requests_flagged_total")

    def test_the_live_set_has_room_before_all_others(self, tmp_path: Path) -> None:
        """
        Whatever was swapped before, what is live now is counted by its own name.
        """
        registry = CollectorRegistry()
        sets = [many(tmp_path, 30, str(i)) for i in range(8)]
        metrics = Metrics(registry, sets[0], version="0", queue_batches=1)
        for live in sets:
            metrics.set_detectors(live, sets)
            names = [detector.name for detector in live.bundle.detectors]
            metrics.count_flags([flag("e", n, n, live.digest) for n in names])
            page = generate_latest(registry).decode()

            of = f'bundle="{label_of(live.digest)}"'
            for name in names:
                wanted = f'innerwatch_flags_total{{{of},detector="{name}",model_name=""'
                assert f"{wanted}}} 1.0" in page


def _go_live(engine: Engine, name: str) -> None:
    engine.promote(name)
    eventually(
        lambda: engine.beat() is not None and engine.states()[name] == "live", name
    )


class TestBoundedLabels:
    def test_what_has_no_room_is_other(self) -> None:
        """
        Beyond the bound everything is one series, and its uses are counted.
        """
        registry = CollectorRegistry()
        folded = Counter("folded", "Folded.", registry=registry)
        bounded = BoundedLabels(
            Counter("c", "C.", ("a", "b"), registry=registry), 2, folded
        )

        for name in ("x", "y", "z", "x", "w"):
            bounded.of(name, "1").inc()

        page = generate_latest(registry).decode()
        assert 'c_total{a="x",b="1"} 2.0' in page
        assert 'c_total{a="other",b="other"} 2.0' in page
        assert "folded_total 2.0" in page

    def test_the_oldest_that_may_gives_way(self) -> None:
        """
        Room is made of what `may_forget` says, and of nothing else.
        """
        registry = CollectorRegistry()
        folded = Counter("folded", "Folded.", registry=registry)
        bounded = BoundedLabels(
            Counter("c", "C.", ("a",), registry=registry), 2, folded
        )
        bounded.of("kept").inc()
        bounded.of("old").inc()
        bounded.may_forget = lambda values: values != ("kept",)

        bounded.of("new").inc()

        page = generate_latest(registry).decode()
        assert 'a="old"' not in page
        assert 'c_total{a="kept"} 1.0' in page
        assert 'c_total{a="new"} 1.0' in page


class TestDisk:
    def test_free_and_size_are_the_file_systems(
        self, own_daemon: RunningDaemon
    ) -> None:
        """
        What is left for the record, as the file system says.
        """
        found = shutil.disk_usage(own_daemon.place.folder / "audit")

        assert found.total == own_daemon.metric("innerwatch_audit_disk_size_bytes")
        free = own_daemon.metric("innerwatch_audit_disk_free_bytes")
        assert 0 < free <= found.total

    def test_a_folder_that_is_gone_is_not_a_number(self, tmp_path: Path) -> None:
        """
        A look at what is not there breaks no scrape.
        """
        registry = CollectorRegistry()
        DiskMetrics(registry, tmp_path / "none")

        page = generate_latest(registry).decode()

        assert "innerwatch_audit_disk_free_bytes NaN" in page
