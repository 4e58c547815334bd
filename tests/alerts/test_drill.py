"""A drill through a real daemon, Prometheus, Alertmanager and webhook."""

import math

import grpc
import pytest

from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.alerts.receiver import Receiver
from tests.alerts.stack import stack
from tests.bench.drill import measure, with_webhook
from tests.service.builders import (
    Client,
    Place,
    RunningDaemon,
    assert_refused,
    eventually,
    innerwatch,
    json_of,
)
from tests.service.swapping import record


class TestDrill:
    def test_arrives_everywhere(self, where: Place) -> None:
        """
        One command: in the record, on /metrics, at the webhook and a firing alert.
        """
        with Receiver() as receiver:
            with_webhook(where, receiver)
            with (
                RunningDaemon(where) as daemon,
                stack([daemon.url], scrape_seconds=1, evaluation_seconds=1) as both,
            ):
                asked = ("drill", "--address", where.address, "--json")
                result = innerwatch(*asked, "--alertmanager", both.alertmanager)
                assert 1 == daemon.metric("innerwatch_drills_total")

        assert 0 == result.returncode, result
        times = json_of(result)
        assert isinstance(times, dict)
        assert {} == times["problems"]
        assert 0 <= times["durable"] <= times["metrics"] <= times["alert"]
        assert times["sinks"]["webhook"] > 0
        fields = receiver.posts[0].fields
        assert ("drill", True) == (fields["kind"], fields["is_drill"])
        assert "innerwatch-drill" == fields["detector"]
        assert times["drill_id"] == fields["id"]
        events = [
            row["detail"] for row in record(where, "events") if row["kind"] == "drill"
        ]
        assert [times["drill_id"]] == events

    def test_is_no_flag(self, own_daemon: RunningDaemon) -> None:
        """
        It is in no count of flags and requests, in no list of flags, and no detector's
        statistics have moved.
        """
        eventually(lambda: "innerwatch_detector_set{" in own_daemon.get(), "it runs")
        before = _without_drills(own_daemon.get())

        result = innerwatch("drill", "--address", own_daemon.place.address)

        assert 0 == result.returncode, result
        assert before == _without_drills(own_daemon.get())
        assert [] == record(own_daemon.place, "flags")
        with Client(own_daemon.place.address) as client:
            assert [] == client.flags()

    def test_says_what_did_not_come(self, where: Place) -> None:
        """
        A webhook that fails and an Alertmanager that nobody runs: status 1, and why.
        """
        with Receiver(status=503) as receiver:
            with_webhook(where, receiver)
            with RunningDaemon(where):
                result = innerwatch(
                    *("drill", "--address", where.address, "--timeout", "1"),
                    *("--alertmanager", "http://127.0.0.1:1"),
                )

        assert 1 == result.returncode, result
        lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
        assert "HTTP 503" == lines["webhook"]
        assert "refused" in lines["Alertmanager"]
        assert lines["durable"].endswith(" s")

    @pytest.mark.parametrize(
        ("option", "value"), [("--timeout", "0"), ("--alertmanager", "localhost")]
    )
    def test_refuses(self, option: str, value: str) -> None:
        """
        What makes no sense is refused before anything is planted.
        """
        assert_refused(innerwatch("drill", option, value), option, value)

    def test_is_for_the_unix_socket(self, where: Place) -> None:
        """
        Nobody who only reaches a port can plant a drill.
        """
        where.configure(daemon='listen = "127.0.0.1:0"')
        with RunningDaemon(where) as daemon:
            port = next(x for x in daemon.log if "ready:" in x).split("127.0.0.1:")[1]
            with (
                Client(f"127.0.0.1:{port.split(',')[0]}") as client,
                pytest.raises(grpc.RpcError) as caught,
            ):
                client.control.StartDrill(pb.StartDrillRequest())

        assert isinstance(caught.value, grpc.Call)
        assert grpc.StatusCode.PERMISSION_DENIED is caught.value.code()

    def test_of_long_ago_is_not_known(self, own_daemon: RunningDaemon) -> None:
        """
        Whoever asks for a drill that was none gets NOT_FOUND.
        """
        with (
            Client(own_daemon.place.address) as client,
            pytest.raises(grpc.RpcError) as caught,
        ):
            client.control.GetDrill(pb.GetDrillRequest(drill_id="none"))

        assert isinstance(caught.value, grpc.Call)
        assert grpc.StatusCode.NOT_FOUND is caught.value.code()


def _without_drills(page: str) -> list[str]:
    return [
        line
        for line in page.splitlines()
        if not line.startswith(("#", "innerwatch_drill", "innerwatch_audit_disk"))
    ]


def test_the_benchmark_in_short() -> None:
    """
    Four drills on two daemons: each arrives at every step.
    """
    found = measure(4, 2, 1.0, 1.0)

    assert {"durable", "/metrics", "webhook", "alert"} == found.keys()
    for seconds in found.values():
        assert 4 == len(seconds)
        assert all(math.isfinite(one) for one in seconds)
