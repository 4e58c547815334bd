"""What every sink promises, whatever its receiver does."""

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.daemon.audit.opening import FILE_NAME, AuditError
from service.daemon.drills import Drill
from service.daemon.sinks.follower import Receiver as SinkReceiver
from service.daemon.sinks.notice import notice_id_of
from service.daemon.sinks.otlp import OTLP
from service.daemon.sinks.webhook import Webhook
from tests.alerts.receiver import SECRET, Receiver
from tests.alerts.sinks import LIMITS, Record, flag, record, running
from tests.service.builders import eventually

TIMEOUT_SECONDS = 0.5


def webhook(receiver: Receiver) -> SinkReceiver:
    return Webhook(receiver.url, SECRET.encode(), TIMEOUT_SECONDS)


def otlp(receiver: Receiver) -> SinkReceiver:
    return OTLP(receiver.url, TIMEOUT_SECONDS, version="0")


RECEIVERS: dict[str, Callable[[Receiver], SinkReceiver]] = {
    "webhook": webhook,
    "otlp": otlp,
}
"""Adding a sink is adding a line."""


@pytest.fixture(params=RECEIVERS)
def make(request: pytest.FixtureRequest) -> Callable[[Receiver], SinkReceiver]:
    return RECEIVERS[str(request.param)]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Record]:
    with record(tmp_path / "audit") as one:
        yield one


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def n_delivered(made: Record) -> float:
    return made.value("delivered_total")


Make = Callable[[Receiver], SinkReceiver]


def test_delivers_every_flag_once_and_in_order(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    What is in the record after the start arrives, in the record's order.
    """
    made.add("before")
    with running(made.sink(make(receiver))) as sink:
        names = [f"r{i}" for i in range(200)]
        for name in names:
            made.add(name)
            sink.announce(())
        eventually(lambda: n_delivered(made) == 200, "all arrived")

    assert 200 == len(receiver.posts)
    assert 0 == made.value("backlog_flags")
    assert 200 == made.value("delay_seconds_count")


@pytest.mark.parametrize("status", [500, 503, 429, 404, 302])
def test_tries_again_until_it_is_taken(
    made: Record, receiver: Receiver, make: Make, status: int
) -> None:
    """
    A receiver that can not now, or is not where it should be, gets it later.
    """
    receiver.status = status
    with running(made.sink(make(receiver))) as sink:
        made.add("a", "b")
        sink.announce(())
        failures = {"reason": "status"}
        eventually(
            lambda: made.value("failures_total", **failures) >= 2, "it is tried again"
        )
        assert 0 == n_delivered(made)
        receiver.status = 200
        eventually(lambda: n_delivered(made) == 2, "both arrive")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("hang", "timeout"), ("drip", "timeout"), ("hang up", "connection")],
)
def test_a_receiver_that_does_not_answer_is_tried_again(
    made: Record, receiver: Receiver, make: Make, behaviour: str, reason: str
) -> None:
    """
    One that hangs, answers a byte at a time or hangs up costs one timeout an attempt.
    """
    receiver.behaviour = behaviour
    with running(made.sink(make(receiver))) as sink:
        made.add("a")
        sink.announce(())
        eventually(lambda: made.value("failures_total", reason=reason) >= 1, "failed")
        receiver.behaviour = "answer"
        eventually(lambda: n_delivered(made) == 1, "it arrives")


@pytest.mark.parametrize(
    ("status", "headers", "answer"),
    [
        (503, {"Retry-After": "\xb2"}, b""),
        (200, {}, b'{"partialSuccess": {"rejectedLogRecords": Infinity}}'),
        (200, {}, b"[" * 60_000),
    ],
)
def test_nothing_that_is_answered_ends_it(
    made: Record,
    receiver: Receiver,
    make: Make,
    status: int,
    headers: dict[str, str],
    answer: bytes,
) -> None:
    """
    A receiver that answers nonsense costs an attempt at most: the next flag arrives.
    """
    receiver.status, receiver.headers, receiver.answer = status, headers, answer
    with running(made.sink(make(receiver))) as sink:
        made.add("a")
        sink.announce(())
        eventually(lambda: len(receiver.posts) >= 1, "it is sent")
        receiver.status, receiver.headers, receiver.answer = 200, {}, b""
        made.add("b")
        sink.announce(())
        eventually(lambda: n_delivered(made) == 2, "both arrive")
        assert 1 == made.value("running")


def test_waits_longer_from_attempt_to_attempt(
    made: Record, receiver: Receiver, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A receiver in trouble is not hurried: each wait is twice the one before, and at
    least what it asked for.
    """
    receiver.status = 500
    with running(made.sink(make(receiver))) as sink:
        made.add("a")
        sink.announce(())
        eventually(lambda: len(_waits(caplog)) >= 2, "two attempts")
        receiver.headers = {"Retry-After": "7"}
        eventually(lambda: 7.0 in _waits(caplog), "it is asked to wait")

    assert [0.25, 0.5] == _waits(caplog)[:2]


def _waits(caplog: pytest.LogCaptureFixture) -> list[float]:
    found = re.findall(r"tried again in ([\d.]+) s", caplog.text)
    return [float(seconds) for seconds in found]


def test_announcing_never_waits(made: Record, receiver: Receiver, make: Make) -> None:
    """
    The ingest thread is not held up by a receiver that hangs.
    """
    receiver.behaviour = "hang"
    with running(made.sink(make(receiver))) as sink:
        made.add(*[f"r{i}" for i in range(500)])
        sink.announce(())
        eventually(lambda: len(receiver.posts) == 1, "it hangs")
        before = time.thread_time()
        began = time.monotonic()
        for _ in range(1000):
            sink.announce([Drill(drill_id="d", planted_at=1.0)])
        waited = time.monotonic() - began - (time.thread_time() - before)

        assert waited < 1000 * TIMEOUT_SECONDS / 10


def test_what_is_too_much_is_left_out_and_counted(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    Beyond the bound the oldest are left out: the sum of all fates is all flags.
    """
    receiver.status = 500
    limits = replace(LIMITS, queue_flags=10)
    with running(made.sink(make(receiver), limits)) as sink:
        made.add(*[f"r{i}" for i in range(100)])
        sink.announce(())
        omitted = {"reason": "backlog_full"}
        eventually(lambda: made.value("omitted_total", **omitted) == 90, "left out")
        receiver.status = 200
        eventually(lambda: n_delivered(made) == 10, "the newest arrive")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_receiver_refuses_holds_up_no_other(
    made: Record, receiver: Receiver, make: Make, status: int
) -> None:
    """
    A notice that will never be taken is counted, and the next one is sent.
    """
    receiver.status = status
    with running(made.sink(make(receiver))) as sink:
        made.add("a")
        sink.announce(())
        eventually(
            lambda: made.value("omitted_total", reason="refused") == 1, "refused"
        )
        receiver.status = 200
        made.add("b")
        sink.announce(())
        eventually(lambda: n_delivered(made) == 1, "the next arrives")


def test_gives_one_flag_up_for_the_next(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    One flag that always fails is given up after its time.
    """
    receiver.status = 500
    limits = replace(LIMITS, give_up_seconds=0.3)
    with running(made.sink(make(receiver), limits)) as sink:
        made.add("a", "b")
        sink.announce(())
        eventually(
            lambda: made.value("omitted_total", reason="gave_up") >= 1, "given up"
        )
        receiver.status = 200
        eventually(
            lambda: (
                n_delivered(made) + made.value("omitted_total", reason="gave_up") == 2
            ),
            "both are done with",
        )


def test_goes_on_after_a_restart(made: Record, receiver: Receiver, make: Make) -> None:
    """
    What was not delivered before a stop is after it, and what was is not again.
    """
    with running(made.sink(make(receiver))) as sink:
        made.add("a")
        sink.announce(())
        eventually(lambda: n_delivered(made) == 1, "a arrives")
    made.add("b")
    with running(made.sink(make(receiver))):
        eventually(lambda: n_delivered(made) == 2, "b arrives")

    assert 2 == len(receiver.posts)


@pytest.mark.parametrize("text", ["", "{", '{"last_flag_id": "x"}', "[]", "\0" * 5000])
def test_a_torn_cursor_sends_all_again(
    made: Record, receiver: Receiver, make: Make, text: str
) -> None:
    """
    Where it is not known what was delivered, everything is: none is left out.
    """
    made.add("a", "b")
    (made.folder / "webhook.json").write_text(text)
    with running(made.sink(make(receiver))):
        eventually(lambda: n_delivered(made) == 2, "both arrive")


def test_another_record_begins_anew(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    A place beyond the record's end is of another record: this one's flags are sent.
    """
    made.add("a")
    (made.folder / "webhook.json").write_text(json.dumps({"last_flag_id": 99}))
    with running(made.sink(make(receiver))):
        eventually(lambda: n_delivered(made) == 1, "it arrives")


def test_what_comes_after_all_were_removed_is_sent(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    Where retention has removed every flag, those that come after it arrive.
    """
    with running(made.sink(make(receiver))) as sink:
        made.add("a", "b", "c")
        sink.announce(())
        eventually(lambda: n_delivered(made) == 3, "they arrive")
        with sqlite3.connect(made.folder / FILE_NAME) as connection:
            connection.execute("DELETE FROM flags")
        # The sink looks once a second.
        cursor = made.folder / "webhook.json"
        eventually(lambda: '"last_flag_id": 0' in cursor.read_text(), "it begins anew")
        made.add("d")
        sink.announce(())
        eventually(lambda: n_delivered(made) == 4, "the new one arrives")


def test_drills_arrive_before_what_waits(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    A drill times the way as it is now: it stands in no queue, and in no count.
    """
    receiver.status = 500
    with running(made.sink(make(receiver))) as sink:
        made.add("a")
        sink.announce(())
        eventually(lambda: len(receiver.posts) >= 1, "it fails")
        receiver.status = 200
        drill = Drill(drill_id="d1", planted_at=1.0)
        made.drills.begin(drill)
        sink.announce([drill])
        eventually(lambda: bool(made.drills.find("d1")), "the drill is done")
        eventually(lambda: n_delivered(made) == 1, "the flag too")

    found = made.drills.find("d1")
    assert found is not None
    assert [("webhook", "")] == [(one.sink, one.problem) for one in found]


def test_a_drill_that_fails_says_why(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    It is tried once: a drill that came late would say nothing.
    """
    receiver.status = 503
    with running(made.sink(make(receiver))) as sink:
        drill = Drill(drill_id="d1", planted_at=1.0)
        made.drills.begin(drill)
        sink.announce([drill])
        eventually(lambda: bool(made.drills.find("d1")), "the drill is done")

    found = made.drills.find("d1")
    assert found is not None
    assert "503" in found[0].problem


def test_without_a_record_it_does_not_start(
    made: Record, receiver: Receiver, make: Make
) -> None:
    """
    A sink that can not know what was delivered is the operator's to mend.
    """
    sink = made.sink(make(receiver))
    (made.folder / FILE_NAME).rename(made.folder / "elsewhere")

    with pytest.raises(AuditError, match="webhook: its place in the record"):
        sink.start()


def test_ids_are_of_the_flag_and_not_of_its_number() -> None:
    """
    Two flags of one request differ, and no choice of names makes two flags one.
    """
    one = flag("a")
    ids = {
        notice_id_of(one.engine, one.request_id, one.detector),
        notice_id_of(one.engine, one.request_id, "ema"),
        notice_id_of(one.engine, "a,b", "c"),
        notice_id_of(one.engine, "a", "b,c"),
        notice_id_of(one.engine, 'a", "b', "c"),
        notice_id_of(one.engine, "a", 'b", "c'),
    }

    assert 6 == len(ids)
