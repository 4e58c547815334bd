"""A real daemon in a process of its own, and a client that streams real batches."""

import ctypes
import signal
import sqlite3
import stat
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from monitor.records import NOT_WRITTEN
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import (
    Rows,
    batch,
    loud,
    quiet,
    with_norms,
)
from tests.service.builders import (
    Client,
    RunningDaemon,
    bundle,
    eventually,
    hello,
    innerwatch,
    json_of,
    place,
)
from tests.service.swapping import record


class TestState:
    def test_goes_from_waiting_to_watching_to_blind(self) -> None:
        """
        Waiting, watching while tokens are scored, blind when rows are silent, blind
        when the engine goes away; the health service says so too.
        """
        watching = "innerwatch.watching"
        status = health_pb2.HealthCheckResponse
        with (
            place() as where,
            RunningDaemon(where) as daemon,
            Client(where.address) as client,
        ):
            assert "waiting" == daemon.state()
            assert status.SERVING == client.health("")
            assert status.NOT_SERVING == client.health(watching)

            client.hello()
            client.ask(pb.Heartbeat(is_proven=True))
            client.ask(batch(Rows("a", 0, quiet(2)), step=1))
            eventually(lambda: "watching" == daemon.state(), "watching")
            assert status.SERVING == client.health(watching)
            assert 0 == innerwatch("status", "--address", where.address).returncode

            silent = with_norms(
                batch(Rows("a", 2, quiet(2)), step=2), [0, 1], float(NOT_WRITTEN)
            )
            client.ask(silent)

            def is_blind() -> bool:
                client.ask(pb.Heartbeat(is_proven=True))
                now = len(steps) + 3
                steps.append(now)
                more = batch(Rows("a", now + 1, quiet(1)), step=now)
                client.ask(with_norms(more, [0], float(NOT_WRITTEN)))
                return "blind" == daemon.state()

            steps: list[int] = []
            eventually(is_blind, "blind by a silent tap")
            assert "tap_silent" in daemon.get("healthz")
            assert 1 == daemon.metric('innerwatch_state{state="blind"}')

            client.close_stream()
            eventually(
                lambda: "no engine is connected" in daemon.get("healthz"),
                "blind without an engine",
            )
            assert 1 == innerwatch("status", "--address", where.address).returncode

    def test_silence_and_refusal_are_blindness(self) -> None:
        """
        A stream that stops talking, and an engine of other weights, are blindness.
        """
        with (
            place() as where,
            RunningDaemon(where) as daemon,
            Client(where.address) as client,
        ):
            client.hello()
            client.ask(pb.Heartbeat(is_proven=True))
            eventually(lambda: "silent" in daemon.get("healthz"), "blind by silence")
            with pytest.raises(grpc.RpcError):
                client.capture.Hello(hello("other", identity={"dtype": "float16"}))
            eventually(lambda: "refused" in daemon.get("healthz"), "blind by refusal")
            assert 1 == daemon.metric("innerwatch_hellos_refused_total")

    def test_an_engine_that_was_refused_is_forgotten_when_it_stops_trying(self) -> None:
        """
        While it tries the daemon is blind; the record has its refusal once.
        """
        with (
            place() as where,
            RunningDaemon(where) as daemon,
            Client(where.address) as client,
        ):
            client.hello()
            for _ in range(3):
                with pytest.raises(grpc.RpcError):
                    client.capture.Hello(hello("other", identity={"dtype": "float16"}))

            def is_watching() -> bool:
                client.ask(pb.Heartbeat(is_proven=True))
                return "watching" == daemon.state()

            eventually(lambda: "refused" in daemon.get("healthz"), "blind by refusal")
            eventually(is_watching, "watching again")
            assert 3 == daemon.metric("innerwatch_hellos_refused_total")
            with sqlite3.connect(where.folder / "audit" / "audit.sqlite") as record:
                (n_events,) = record.execute(
                    "SELECT count(*) FROM events WHERE kind = 'hello_refused'"
                ).fetchone()
            record.close()
            assert 1 == n_events

    def test_an_engine_that_breaks_off_is_on_record(self) -> None:
        """
        One of two engines dies without a goodbye: degraded while it is waited for,
        then a gap in the record, and no request of it counts as scanned. A third
        that comes meanwhile ends nothing, and one that says goodbye is no gap.
        """
        limits = "blind_after_seconds = 60.0\nreconnect_grace_seconds = 6.0"
        with place() as where:
            where.configure(ingest=limits)
            with (
                RunningDaemon(where) as daemon,
                Client(where.address, engine="stays") as stays,
                Client(where.address, engine="dies") as dies,
                Client(where.address, engine="comes") as comes,
            ):
                stays.hello()
                stays.ask(pb.Heartbeat(is_proven=True))
                dies.hello()
                dies.ask(batch(Rows("a", 0, quiet(2)), engine="dies", step=1))
                n_engines = "innerwatch_engines_connected"
                eventually(lambda: 2 == daemon.metric(n_engines), "two engines")

                dies.channel.close()

                eventually(
                    lambda: "dies broke off" in daemon.get("healthz"), "degraded"
                )
                comes.hello()
                comes.ask(pb.Heartbeat(is_proven=True))
                assert 1 == daemon.metric("innerwatch_live_requests")
                eventually(lambda: "watching" == daemon.state(), "watching again")
                gaps = 'innerwatch_gaps_total{reason="not_received"}'
                partial = 'innerwatch_requests_total{verdict="partial"}'
                assert (1, 1) == (daemon.metric(gaps), daemon.metric(partial))

                comes.ask(pb.Goodbye())
                comes.close_stream()
                eventually(lambda: 1 == daemon.metric(n_engines), "one engine")
                assert "watching" == daemon.state()


class TestCrash:
    def test_sigkill_keeps_every_acknowledged_flag(self) -> None:
        """
        What was acknowledged before SIGKILL is there after a restart, once, and
        the time without a daemon is a gap.
        """
        with place() as where:
            n_acknowledged = 0
            with RunningDaemon(where) as daemon, Client(where.address) as client:
                client.hello()
                for step in range(1, 401):
                    client.send(batch(Rows(f"r{step}", 0, [loud(0)]), step=step))
                while n_acknowledged < 100:
                    n_acknowledged = client.answer().acknowledged_step
                daemon.stop(signal.SIGKILL)
            with RunningDaemon(where) as daemon, Client(where.address) as client:
                kept = {
                    flag.request_id
                    for flag in client.audit.ListFlags(
                        pb.ListFlagsRequest(limit=1000)
                    ).flags
                }
                client.hello()
                for step in range(1, 401):
                    client.send(batch(Rows(f"r{step}", 0, [loud(0)]), step=step))
                for _ in range(400):
                    client.answer()
                flags = client.audit.ListFlags(pb.ListFlagsRequest(limit=1000)).flags

                assert {f"r{i}" for i in range(1, n_acknowledged + 1)} <= kept
                assert sorted({f"r{i}" for i in range(1, 401)}) == sorted(
                    flag.request_id for flag in flags
                )
                gaps = 'innerwatch_gaps_total{reason="not_received"}'
                assert 1 == daemon.metric(gaps)
                assert any("did not stop" in line for line in daemon.log)

    def test_an_end_is_recorded_once(self) -> None:
        """
        A request whose last step comes again, because the daemon was killed before it
        acknowledged it, stands in the record as what it was: scanned.
        """
        last = batch(Rows("a", 3, quiet(2)), step=2, finished=("a",))
        with place() as where:
            with RunningDaemon(where) as daemon, Client(where.address) as client:
                client.hello()
                client.ask(batch(Rows("a", 0, quiet(3)), step=1))
                client.ask(last)
                daemon.stop(signal.SIGKILL)
            with RunningDaemon(where), Client(where.address) as client:
                client.hello()
                client.ask(last)

                rows = record(where, "requests")
                found = [(row["verdict"], row["n_tokens_scored"]) for row in rows]
                assert [("scanned", 5)] == found

    def test_sigterm_is_a_clean_stop(self) -> None:
        """
        A stopped daemon exits 0, removes its socket, leaves no gap, and says of a
        request that it did not see to its end that it is partial.
        """
        with place() as where:
            with RunningDaemon(where) as daemon, Client(where.address) as client:
                client.hello()
                client.ask(batch(Rows("a", 0, [loud(0)])))
                assert 0 == daemon.stop()
                assert not where.socket.exists()
            with RunningDaemon(where) as daemon:
                assert not any("did not stop" in line for line in daemon.log)
            listed = innerwatch(
                "flags", "list", "--audit", str(where.folder / "audit"), "--json"
            )
            flags = json_of(listed)
            assert isinstance(flags, list)
            assert ["a"] == [flag["request_id"] for flag in flags]
            assert ["partial"] == [flag["verdict"] for flag in flags]

    def test_sigterm_stops_whichever_thread_it_reaches(self) -> None:
        """
        The kernel may hand a signal to any thread, while the first one sleeps.
        """
        with place() as where, RunningDaemon(where) as daemon:
            pid = daemon.process.pid
            tasks = Path(f"/proc/{pid}/task").iterdir()
            others = {int(task.name) for task in tasks} - {pid}

            ctypes.CDLL(None).tgkill(pid, max(others), signal.SIGTERM)

            assert 0 == daemon.process.wait(20)

    def test_a_record_that_cannot_be_written_stops_the_daemon(self) -> None:
        """
        Without its record the daemon acknowledges nothing and exits non-zero.
        """
        with (
            place() as where,
            RunningDaemon(where) as daemon,
            Client(where.address) as client,
        ):
            client.hello()
            with sqlite3.connect(where.folder / "audit" / "audit.sqlite") as other:
                other.execute("DROP TABLE flags")
            other.close()

            with pytest.raises((grpc.RpcError, StopIteration)):
                client.ask(batch(Rows("a", 0, [loud(0)])))

            assert 1 == daemon.process.wait(20)
            assert any("audit record" in line for line in daemon.log)


def test_the_socket_is_its_owners(daemon: RunningDaemon) -> None:
    """
    Nobody but the owner may connect or read the record.
    """
    audit = daemon.place.folder / "audit"

    assert 0o600 == stat.S_IMODE(daemon.place.socket.stat().st_mode)
    assert 0o700 == stat.S_IMODE(audit.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(f.stat().st_mode) for f in audit.iterdir()}


def test_every_label_is_exported_from_the_start() -> None:
    """
    A counter that has not moved is 0 and not absent; no label is a request id.
    """
    with place() as where, RunningDaemon(where) as daemon:
        page = daemon.get()

    of = f'bundle="{bundle().digest[:12]}",detector'
    no_model = ',model_name=""'
    for sample in (
        'innerwatch_tokens_lost_total{reason="tap_silent"} 0.0',
        'innerwatch_requests_total{verdict="unscanned"} 0.0',
        f'innerwatch_flags_total{{{of}="mean"{no_model}}} 0.0',
        'innerwatch_gaps_total{reason="buffer_full"} 0.0',
        f'innerwatch_score_margin_count{{{of}="ema"}} 0.0',
        'innerwatch_state{state="waiting"} 1.0',
        "innerwatch_batches_refused_total 0.0",
    ):
        assert sample in page
    assert "request_id" not in page
    assert "_created" not in page
