"""Detector sets change under a running daemon, and no request is lost or mixed."""

import json
import signal

import pytest

from service.daemon.saved_sets import FILE_NAME as SAVED
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import Rows, detectors, loud, quiet
from tests.service.builders import (
    Place,
    RunningDaemon,
    bundle,
    eventually,
    innerwatch,
    json_of,
)
from tests.service.swapping import LIVE, Engine, make_bundle, record, saved_bundle


class TestPromotion:
    def test_requests_that_run_stay_with_the_set_they_began_under(
        self, where: Place, engine: Engine
    ) -> None:
        """
        Across promotion and rollback each request is scored whole by one set, and the
        record says by which.
        """
        before, other = engine.bank.digest, make_bundle()
        engine.step(Rows("old", 0, quiet(2)))
        engine.load(saved_bundle(where.folder))
        assert (
            "coming"
            == {s.name: s.state for s in engine.promote("other:1").sets}["other:1"]
        )
        engine.step(Rows("old", 2, quiet(1)), Rows("still-old", 0, quiet(1)))
        assert 1 == engine.n_orders
        assert before != engine.bank.digest

        engine.step(Rows("old", 3, quiet(1)), Rows("still-old", 1, quiet(1)))
        assert {"other:1": "live", LIVE: "retiring"} == engine.states()
        everywhere = [[9.0, 9.0, 9.0, 9.0]]
        names = ("old", "still-old", "new")
        engine.step(
            *(Rows(n, p, everywhere) for n, p in zip(names, (4, 2, 0), strict=True)),
            finished=names,
        )
        eventually(lambda: engine.states()[LIVE] == "previous", "the old set retires")
        engine.roll_back()
        eventually(lambda: engine.states()[LIVE] == "live", "at once: no new bank")
        assert 1 == engine.n_orders
        engine.step(Rows("back", 0, everywhere), finished=("back",))

        found = {row["request_id"]: row for row in record(where, "requests")}
        own, its = bundle().digest, other.digest
        digests = {name: row["bundle_digest"] for name, row in found.items()}
        assert {"old": own, "still-old": own, "new": its, "back": own} == digests
        assert {"scanned"} == {row["verdict"] for row in found.values()}
        by_old = {"max", "ema", "mean"} & set(
            json.loads(found["still-old"]["flagged_by"])
        )
        assert {"max", "ema", "mean"} == by_old
        assert {"fourth", "slow"} == set(json.loads(found["new"]["flagged_by"]))
        flags = {(f["request_id"], f["bundle_digest"]) for f in record(where, "flags")}
        assert set(digests.items()) == flags
        kinds = [e["kind"] for e in record(where, "events") if e["kind"] != "hello"]
        expected = ["start", "detectors_loaded", "promoted", "detectors_live"]
        expected += ["detectors_retired", "rolled_back", "detectors_live"]
        assert expected == kinds[:7]

    def test_the_command_waits_until_it_is_live(
        self, where: Place, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        `promote --wait` returns when every engine computes the columns, or says whom
        it waited for; the list and the status show the rest.
        """
        address = ("--address", where.address)
        path = saved_bundle(where.folder)
        loaded = innerwatch("detectors", "load", str(path), *address)
        assert 0 == loaded.returncode, loaded
        late = innerwatch(
            "detectors", "promote", "other:1", "--wait", "--timeout", "0.3", *address
        )
        assert 1 == late.returncode
        assert f"waiting for {engine.engine}" in late.stderr
        engine.beat()
        engine.beat()

        listed = innerwatch("detectors", "list", "--json", *address)
        facts = json_of(listed)
        assert isinstance(facts, list)
        assert [("other:1", "live"), (LIVE, "previous")] == [
            (one["name"], one["state"]) for one in facts
        ]
        assert "other:1" in innerwatch("status", *address).stdout
        back = innerwatch("detectors", "rollback", "--wait", *address)
        assert (0, "live") == (back.returncode, back.stdout.split()[0])
        assert 1 == own_daemon.metric(
            f'innerwatch_detector_set{{name="{LIVE}",state="live"}}'
        )

    def test_an_engine_that_is_away_is_not_waited_for(
        self, where: Place, engine: Engine
    ) -> None:
        """
        It gets the new bank when it comes back; what it brings of before is scored
        with the set that its bank was for.
        """
        engine.load(saved_bundle(where.folder))
        with Engine(where.address, "away") as away:
            away.hello()
            away.beat()
            old_bank = away.bank
        eventually(
            lambda: (
                not {"away"}
                & set(
                    engine.control.ListDetectors(pb.ListDetectorsRequest()).waiting_for
                )
            ),
            "it is gone",
        )
        engine.promote("other:1")
        engine.beat()
        engine.beat()
        eventually(lambda: engine.states()["other:1"] == "live", "live without it")

        with Engine(where.address, "away") as away:
            away.hello()
            assert engine.bank.digest == away.bank.digest
            away.bank = old_bank
            away.step(Rows("brought", 0, [loud(0)]))
            away.bank = engine.bank
            away.step(Rows("brought", 1, quiet(1)), finished=("brought",))
            away.step(Rows("fresh", 0, [loud(3)]), finished=("fresh",))

        found = {r["request_id"]: r["bundle_digest"] for r in record(where, "requests")}
        own, its = bundle().digest, make_bundle().digest
        assert {"brought": own, "fresh": its} == found
        verdicts = {row["verdict"] for row in record(where, "requests")}
        assert {"scanned"} == verdicts

    def test_engines_that_send_activations_need_no_bank(self, where: Place) -> None:
        """
        A set goes live at once where nothing has to be computed elsewhere.
        """
        with RunningDaemon(where), Engine(where.address) as engine:
            engine.hello(mode=pb.CAPTURE_MODE_ACTIVATIONS)
            engine.beat()
            engine.load(saved_bundle(where.folder))
            sets = engine.promote("other:1").sets

        assert ("other:1", "live") == (sets[0].name, sets[0].state)
        assert 0 == engine.n_orders

    def test_a_recalibrated_bundle_needs_no_new_bank(
        self, where: Place, engine: Engine
    ) -> None:
        """
        The same columns under another calibration are at hand at once.
        """
        path = saved_bundle(
            where.folder, name="test", version="2", detectors=detectors(), threshold=5.0
        )
        engine.load(path)
        sets = engine.promote("test:2").sets
        engine.step(Rows("x", 0, [loud(0, 4.0)]), finished=("x",))

        assert ("test:2", "live") == (sets[0].name, sets[0].state)
        assert 0 == engine.n_orders
        assert [] == record(where, "flags")


class TestShadow:
    def test_it_is_counted_and_flags_nothing(
        self, where: Place, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        Its rate is in the list and the metrics; the record has nothing of it.
        """
        engine.load(saved_bundle(where.folder))
        engine.shadow("other:1")
        engine.beat()
        for i in range(4):
            rows = [loud(3)] if i == 0 else quiet(1)
            engine.step(Rows(f"r{i}", 0, rows), finished=(f"r{i}",))

        found = engine.control.ListDetectors(pb.ListDetectorsRequest()).sets[1]
        assert ("shadow", 4, 1, 0) == (
            found.state,
            found.shadow.n_requests,
            found.shadow.n_requests_flagged,
            found.shadow.n_flagged_live,
        )
        assert {"fourth": 1, "slow": 0} == dict(found.shadow.n_flags)
        assert [] == record(where, "flags")
        sample = 'innerwatch_shadow_flags_total{detector="fourth"}'
        eventually(lambda: own_daemon.metric(sample) == 1, "its flag is a metric")
        text = innerwatch("detectors", "list", "--address", where.address).stdout
        assert "as shadow flagged 1 of 4 requests (25.00%)" in text

    def test_promoted_it_needs_no_new_bank(self, where: Place, engine: Engine) -> None:
        """
        What runs beside the live set goes live at once.
        """
        engine.load(saved_bundle(where.folder))
        engine.shadow("other:1")
        engine.beat()
        engine.beat()

        assert "live" == engine.promote("other:1").sets[0].state
        assert 1 == engine.n_orders


class TestRestart:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_what_is_live_survives(self, where: Place, number: signal.Signals) -> None:
        """
        Stopped or killed, the daemon goes on with the set that was promoted.
        """
        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            engine.load(saved_bundle(where.folder))
            engine.promote("other:1")
            daemon.stop(number)
        with RunningDaemon(where), Engine(where.address) as engine:
            answer = engine.hello()

            assert {"other:1": "live", LIVE: "previous"} == engine.states()
            assert make_bundle().digest == answer.bundle_digest
            starts = [e for e in record(where, "events") if e["kind"] == "start"]
            assert make_bundle().digest == starts[-1]["detail"]

    def test_killed_in_the_middle_of_a_swap_it_goes_on_with_it(
        self, where: Place
    ) -> None:
        """
        Batches made with the bank of both sets are scored after the restart, and the
        set that was coming comes.
        """
        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            engine.hello()
            engine.load(saved_bundle(where.folder))
            engine.is_deaf = True
            engine.beat()
            engine.promote("other:1")
            engine.is_deaf = False
            engine.beat()
            both = engine.bank
            daemon.stop(signal.SIGKILL)
        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            assert {LIVE: "live", "other:1": "coming"} == engine.states()
            assert both.digest == engine.hello().bank.digest
            engine.step(Rows("x", 0, quiet(1)), finished=("x",))
            assert {LIVE: "previous", "other:1": "live"} == engine.states()
            (row,) = record(where, "requests")

        assert "scanned" == row["verdict"]

    @pytest.mark.parametrize("spoil", ["file", "torn", "bundle", "digest", "config"])
    def test_what_can_not_be_gone_on_with_is_said(
        self, where: Place, spoil: str
    ) -> None:
        """
        File gone or altered, bundle gone or another: the configured bundle is live,
        and the log and the record say why.
        """
        path = saved_bundle(where.folder)
        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            engine.load(path)
            engine.promote("other:1")
            daemon.stop()
        saved = where.folder / "audit" / SAVED
        assert 0o600 == saved.stat().st_mode & 0o777
        live = LIVE
        if spoil == "file":
            saved.unlink()
        elif spoil == "torn":
            saved.write_bytes(saved.read_bytes()[:-40])
        elif spoil == "bundle":
            path.rename(where.folder / "moved")
        elif spoil == "digest":
            text = saved.read_text()
            saved.write_text(text.replace(make_bundle().digest, "0" * 64))
        else:
            saved_bundle(where.folder, name="third")
            where.configure(detectors='bundle = "third-1"')
            live = "third:1"

        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            assert live == next(n for n, s in engine.states().items() if s == "live")
            assert any("detector sets of before" in line for line in daemon.log)
            kinds = [e["kind"] for e in record(where, "events")]
            assert "detectors_lost" in kinds
