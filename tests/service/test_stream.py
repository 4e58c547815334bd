"""Engines stream to a real daemon: what it takes, refuses and answers."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import (
    EARLY,
    Rows,
    bank,
    batch,
    loud,
    quiet,
)
from tests.service.builders import (
    Client,
    RunningDaemon,
    eventually,
    hello,
    innerwatch,
)
from tests.service.messages import batch_to_proto


@pytest.fixture
def client(daemon: RunningDaemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(daemon.place.address, engine=request.node.name) as one:
        yield one


class TestStream:
    def test_hello_hands_out_the_bank(self, client: Client) -> None:
        """
        An engine gets the columns to compute and the digest to send back.
        """
        answer = client.hello()

        assert bank().digest == answer.bank.digest
        assert list(bank().hook_points) == [s.hook_point for s in answer.bank.slices]

    def test_a_flag_is_in_the_record_when_its_batch_is_acknowledged(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        Once acknowledged, a flag is found by the audit RPCs, the command line and
        the metrics.
        """
        client.hello()
        before = daemon.metric('innerwatch_flags_total{detector="max"}')
        rows = Rows("kept-1", 0, [*quiet(1), loud(0), *quiet(1)])

        answer = client.ask(batch(rows, engine=client.engine, step=3))

        assert (3, "") == (answer.acknowledged_step, answer.refusal)
        (flag,) = client.audit.ListFlags(pb.ListFlagsRequest(request_id="kept-1")).flags
        assert ("max", 10.0, 2.0, 1) == (
            flag.detector,
            flag.score,
            flag.threshold,
            flag.position,
        )
        found = client.audit.GetFlag(pb.GetFlagRequest(flag_id=flag.flag_id))
        assert [0.5, 10.0, 0.5] == np.frombuffer(found.scores, "<f4").tolist()
        assert [100, 101, 102] == np.frombuffer(found.token_ids, "<i4").tolist()
        shown = innerwatch(
            "flags", "list", "--address", daemon.place.address, "--request", "kept-1",
            "--json",
        )  # fmt: skip
        assert "kept-1" in shown.stdout
        eventually(
            lambda: daemon.metric('innerwatch_flags_total{detector="max"}') > before,
            "the flag is counted",
        )

    def test_a_finished_request_gets_a_verdict(self, client: Client) -> None:
        """
        The record holds the whole request's scores and how much was scanned.
        """
        client.hello()
        engine = client.engine
        client.ask(batch(Rows("done-1", 0, [loud(0)]), engine=engine, step=1))
        client.ask(
            batch(Rows("done-1", 1, quiet(2)), engine=engine, step=2,
                  finished=("done-1",))
        )  # fmt: skip

        flags = client.audit.ListFlags(pb.ListFlagsRequest(request_id="done-1")).flags

        found = {f.detector: f for f in flags}
        assert "scanned" == found["max"].verdict
        detail = client.audit.GetFlag(pb.GetFlagRequest(flag_id=found["max"].flag_id))
        assert [10.0, 0.5, 0.5] == np.frombuffer(detail.scores, "<f4").tolist()

    def test_activations_are_projected_here(self, client: Client) -> None:
        """
        An engine that sends activations gets no bank and the same flags.
        """
        answer = client.hello(mode=pb.CAPTURE_MODE_ACTIVATIONS)
        client.ask(
            batch(
                Rows("raw-1", 0, [loud(0)]),
                engine=client.engine,
                holds_activations=True,
            )
        )

        assert not answer.HasField("bank")
        flags = client.audit.ListFlags(pb.ListFlagsRequest(request_id="raw-1")).flags
        assert ["max"] == [flag.detector for flag in flags]

    def test_hook_points_and_columns_beyond_the_bundle_are_ignored(
        self, client: Client
    ) -> None:
        """
        An engine that taps more and pads its columns is scored all the same.
        """
        client.hello(hook_points=["blocks.0.hook_resid_post"])
        message = batch_to_proto(batch(Rows("wide", 0, [loud(0)])))
        for rows in message.hook_points:
            values = np.frombuffer(rows.values, "<f4").reshape(1, -1)
            rows.values = np.pad(values, ((0, 0), (0, 3))).tobytes()
            rows.width += 3
        extra = message.hook_points.add()
        extra.CopyFrom(message.hook_points[0])
        extra.hook_point = "blocks.0.hook_resid_post"

        assert "" == client.ask(message).refusal
        flags = client.audit.ListFlags(pb.ListFlagsRequest(request_id="wide")).flags
        assert ["max"] == [flag.detector for flag in flags]

    def test_malformed_batches_are_refused_and_counted(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        Each refusal says why, its tokens are lost as REFUSED, the stream goes on.
        """
        client.hello()
        sample = 'innerwatch_tokens_lost_total{reason="refused"}'
        before = daemon.metric(sample)
        short = batch_to_proto(batch(Rows("bad", 0, quiet(3)), step=1))
        short.hook_points[0].values = b"123"
        far = batch_to_proto(batch(Rows("bad", 2**30, quiet(2)), step=2))
        elsewhere = batch_to_proto(batch(Rows("bad", 3, quiet(1)), step=3))
        elsewhere.hook_points[0].hook_point = "blocks.9.hook_resid_post"
        never = batch_to_proto(batch(Rows("bad", 4, quiet(4)), step=2**60))

        refusals = [client.ask(m).refusal for m in (short, far, elsewhere, never)]

        assert ["values", "1073741826", "blocks.9", "step"] == [
            next(w for w in ("values", "1073741826", "blocks.9", "step") if w in r)
            for r in refusals
        ]
        good = batch(Rows("good", 0, quiet(1)), engine=client.engine, step=4)
        assert "" == client.ask(good).refusal
        eventually(
            lambda: daemon.metric(sample) == before + 3 + 2 + 1 + 4, "counted as lost"
        )

    def test_a_step_far_from_the_others_is_refused(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        Whatever is in it: believed, it would make every real step after it look
        repeated. Its tokens count.
        """
        client.hello()
        sample = 'innerwatch_tokens_lost_total{reason="refused"}'
        before = daemon.metric(sample)
        steps = [
            batch(Rows("leaps", i, quiet(1)), engine=client.engine, step=step)
            for i, step in enumerate((1 << 40, 1 << 50, 7, (1 << 40) + 1))
        ]

        first, ahead, behind, following = (client.ask(one).refusal for one in steps)

        assert ("", "") == (first, following)
        assert f"expected about {1 << 40}, got {1 << 50}" in ahead
        assert f"expected about {1 << 40}, got 7" in behind
        assert before + 2 == daemon.metric(sample)

    def test_bytes_that_are_no_message_end_only_their_stream(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        Garbage ends the stream that sent it; the next stream is served.
        """
        client.hello()
        stream = client.channel.stream_stream(
            "/innerwatch.v1.Capture/Stream", bytes, pb.StreamResponse.FromString
        )

        with pytest.raises(grpc.RpcError):
            list(stream(iter([b"\xff\xff\xff garbage"])))

        good = batch(Rows("good", 0, quiet(1)), engine=client.engine)
        assert "" == client.ask(good).refusal
        assert daemon.process.poll() is None

    def test_a_step_sent_again_counts_once(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        After a broken connection a sender repeats itself; the books do not.
        """
        client.hello()
        sent = batch(
            Rows("again", 0, quiet(5)), engine=client.engine, finished=("again",)
        )
        client.ask(sent)
        before = daemon.metric("innerwatch_tokens_expected_total")

        client.ask(sent)
        client.ask(pb.Heartbeat())

        assert before == daemon.metric("innerwatch_tokens_expected_total")

    def test_a_malformed_step_number_hides_nothing_after_it(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        A refused batch from a far future step is counted, and so are those behind it.
        """
        client.hello()
        expected = daemon.metric("innerwatch_tokens_expected_total")
        broken = batch_to_proto(batch(Rows("a", 0, quiet(2)), step=1 << 50))
        broken.hook_points[0].values = b"123"

        assert client.ask(broken).refusal
        client.ask(batch(Rows("b", 0, quiet(5)), engine=client.engine, step=2))

        eventually(
            lambda: expected + 7 == daemon.metric("innerwatch_tokens_expected_total"),
            "all seven tokens",
        )

    def test_every_message_gets_one_answer(self, client: Client) -> None:
        """
        Batches, gaps, heartbeats and empty messages are answered in their order.
        """
        client.hello()
        gap = pb.Gap(
            reason=pb.LOSS_REASON_BUFFER_FULL,
            first_step=2,
            last_step=4,
            n_tokens=3,
            lost=[pb.LostRange(request_id="g", first_position=1, n_tokens=3)],
        )
        client.send(batch(Rows("g", 0, quiet(1)), engine=client.engine, step=1))
        client.send(gap)
        client.send(pb.Heartbeat())
        client.send(pb.Gap(n_tokens=2, last_step=5))

        answers = [client.answer() for _ in range(4)]

        assert [1, 4, 4, 5] == [a.acknowledged_step for a in answers]
        assert [False, False, False, True] == [bool(a.refusal) for a in answers]

    def test_a_stream_without_a_hello_is_refused(self, client: Client) -> None:
        """
        Who did not say Hello is told to.
        """
        client.open()
        client.send(pb.Heartbeat())

        with pytest.raises(grpc.RpcError) as caught:
            client.answer()

        assert grpc.StatusCode.FAILED_PRECONDITION is caught.value.code()

    def test_rows_that_are_missing_are_lost(
        self, daemon: RunningDaemon, client: Client
    ) -> None:
        """
        Rows that the scheduler counted and the batch lacks are counted.
        """
        client.hello()
        sample = 'innerwatch_tokens_lost_total{reason="not_received"}'
        before = daemon.metric(sample)

        no_clock = float("nan")
        few = batch(Rows("few", 0, quiet(2)))
        client.ask(batch_to_proto(few, n_rows_expected=7, captured_at=no_clock))

        eventually(lambda: before + 5 == daemon.metric(sample), "missing rows count")


class TestRefusedHello:
    @pytest.mark.parametrize(
        ("change", "code", "word"),
        [
            ({"identity": {"weights_sha256": "b" * 64}}, "FAILED_PRECONDITION",
             "weights_sha256"),
            ({"identity": {"d_model": 5}}, "FAILED_PRECONDITION", "d_model"),
            ({"identity": {"dtype": "bfloat16"}}, "FAILED_PRECONDITION", "dtype"),
            ({"hook_points": [EARLY]}, "INVALID_ARGUMENT", "hook_points"),
            ({"mode": 3}, "INVALID_ARGUMENT", "mode"),
        ],
    )  # fmt: skip
    def test_says_what_does_not_fit(
        self, client: Client, change: dict[str, object], code: str, word: str
    ) -> None:
        """
        One line names the first field that does not fit, with the right status.
        """
        with pytest.raises(grpc.RpcError, match=word) as caught:
            client.hello(**change)

        error = caught.value
        assert isinstance(error, grpc.Call)
        assert code == error.code().name
        assert "\n" not in error.details()

    @pytest.mark.parametrize(
        ("field", "word"), [("hook_points", "blocks.3"), ("k_max", "k_max")]
    )
    def test_needs_room_for_the_bundle(
        self, client: Client, field: str, word: str
    ) -> None:
        """
        Too few hook points or columns are a refusal, not a silent loss.
        """
        message = hello(client.engine)
        if field == "k_max":
            message.k_max = 0
        else:
            del message.hook_points[1]

        with pytest.raises(grpc.RpcError, match=word):
            client.capture.Hello(message)
