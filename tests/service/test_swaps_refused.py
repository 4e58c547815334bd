"""A swap that can not be made changes nothing, and says why in one line."""

import grpc
import pytest

from probes.aggregate import Max
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import EARLY, Rows, loud, probe, quiet
from tests.service.builders import Place, RunningDaemon, bundle, eventually, innerwatch
from tests.service.swapping import LIVE, Engine, record, saved_bundle


def refusal(call: object, *arguments: object, **fields: object) -> str:
    """Return the one line with which a call was refused."""
    assert callable(call)
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code().name in ("FAILED_PRECONDITION", "INVALID_ARGUMENT")
    line = str(error.details())
    assert "\n" not in line
    return line


class TestRefused:
    def test_a_bundle_that_can_not_be_watched_with_is_not_loaded(
        self, where: Place, engine: Engine
    ) -> None:
        """
        Each refusal is one line that names what does not fit, and changes nothing.
        """
        folder = where.folder
        elsewhere = probe("far", "blocks.2.hook_resid_post", 0, Max())
        wide = [probe(f"p{i}", EARLY, i % 4, Max()) for i in range(9)]
        path = saved_bundle(folder)
        for expected, said in (
            (
                "weights_sha256",
                (saved_bundle(folder, name="b", weights_sha256="b" * 64),),
            ),
            ("blocks.2", (saved_bundle(folder, name="far", detectors=[elsewhere]),)),
            ("9 columns", (saved_bundle(folder, name="wide", detectors=wide),)),
            ("bundle.json: expected a file", (folder / "nowhere",)),
            ("absolute", (path.relative_to(folder),)),
        ):
            assert expected in refusal(engine.load, *said)
        assert "sha256: expected" in refusal(engine.load, path, digest="0" * 64)
        engine.load(path)
        assert "already loaded" in refusal(engine.load, path, name="again")
        assert "no such detector set" in refusal(engine.promote, "nothing")
        assert "is live already" in refusal(engine.promote, LIVE)
        assert "no set was live before" in refusal(engine.roll_back)
        assert {LIVE: "live", "other:1": "loaded"} == engine.states()
        assert 0 == engine.n_orders
        shown = innerwatch(
            "detectors", "promote", "nothing", "--address", where.address
        )
        assert 2 == shown.returncode
        assert 1 == len(shown.stderr.splitlines())

    def test_sets_that_do_not_fit_together_are_refused(
        self, where: Place, engine: Engine
    ) -> None:
        """
        The union of both sets has to fit into k_max before anything is sent.
        """
        tall = [probe(f"p{i}", EARLY, i % 4, Max()) for i in range(7)]
        engine.load(saved_bundle(where.folder, name="tall", detectors=tall))

        assert "at most 8 columns" in refusal(engine.promote, "tall:1")
        assert "at most 8 columns" in refusal(engine.shadow, "tall:1")
        assert {LIVE: "live", "tall:1": "loaded"} == engine.states()
        assert 0 == engine.n_orders

    def test_an_engine_without_room_for_both_sets_is_turned_away(
        self, where: Place, engine: Engine
    ) -> None:
        """
        One that comes during a swap is told which sets it would have to compute.
        """
        engine.load(saved_bundle(where.folder))
        engine.shadow("other:1")

        with Engine(where.address, "small") as small:
            line = refusal(small.hello, k_max=2)

        assert "test:1 + other:1 need 3 columns" in line
        assert "room for 2" in line

    def test_a_bank_that_an_engine_refuses_calls_the_swap_off(
        self, where: Place, engine: Engine
    ) -> None:
        """
        The reason is in the record and in the answer, and all go on as before.
        """
        engine.is_deaf = True
        engine.load(saved_bundle(where.folder))
        engine.promote("other:1")
        digest = engine.control.ListDetectors(pb.ListDetectorsRequest()).bank_digest
        refused = pb.BankRefusal(digest=digest, reason="too wide\nfor this engine")
        answer = engine.ask(refused)
        engine.is_deaf = False
        engine.beat()

        assert "" == answer.refusal
        found = engine.control.ListDetectors(pb.ListDetectorsRequest())
        assert {LIVE: "live", "other:1": "loaded"} == engine.states()
        assert "too wide for this engine" in found.problem
        (event,) = (
            e for e in record(where, "events") if e["kind"] == "swap_called_off"
        )
        assert engine.engine in event["detail"]
        assert digest != engine.bank.digest
        engine.step(Rows("x", 0, [loud(0)]), finished=("x",))
        (row,) = record(where, "requests")
        assert ("scanned", bundle().digest) == (row["verdict"], row["bundle_digest"])

    def test_a_batch_of_an_unknown_bank_is_refused_and_counted(
        self, own_daemon: RunningDaemon, engine: Engine
    ) -> None:
        """
        Columns that nobody ordered are lost, and the stream goes on.
        """
        known = engine.bank
        engine.bank = pb.Bank(digest="f" * 64, slices=known.slices)
        engine.step(Rows("x", 0, [loud(0)]))
        engine.bank = known
        assert "" == engine.step(Rows("y", 0, quiet(1))).refusal

        sample = 'innerwatch_tokens_lost_total{reason="refused"}'
        eventually(lambda: own_daemon.metric(sample) == 1, "counted")

    def test_over_tcp_nobody_changes_anything(self, where: Place) -> None:
        """
        A port is anybody's on the machine; the socket is its owner's.
        """
        where.configure(daemon='listen = "127.0.0.1:0"')
        path = saved_bundle(where.folder)
        with RunningDaemon(where) as daemon:
            ready = next(line for line in daemon.log if "ready:" in line)
            address = ready.split("ready: ")[1].split(",")[0]
            with Engine(address) as engine:
                with pytest.raises(grpc.RpcError, match="unix socket"):
                    engine.load(path)
                assert {LIVE: "live"} == engine.states()


def test_unload_forgets_what_does_nothing(where: Place, engine: Engine) -> None:
    """
    The shadow ends; what is live, coming or a way back stays.
    """
    engine.load(saved_bundle(where.folder))
    engine.shadow("other:1")
    named = pb.DetectorsRequest(name="other:1")

    assert [LIVE] == [s.name for s in engine.control.UnloadDetectors(named).sets]
    assert "is live" in refusal(
        engine.control.UnloadDetectors, pb.DetectorsRequest(name=LIVE)
    )
    assert (where.folder / "other-1").is_dir()
