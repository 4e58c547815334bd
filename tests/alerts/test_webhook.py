"""The webhook of a real daemon: what is sent, signed how, and how often."""

import base64
import hashlib
import hmac
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from service.daemon.sinks.notice import Notice, NoticeKind
from service.daemon.sinks.webhook import secret_key
from tests.alerts.receiver import SECRET, Receiver
from tests.monitor.builders import Rows, loud, quiet
from tests.service.builders import (
    Client,
    Place,
    RunningDaemon,
    assert_refused,
    eventually,
    innerwatch,
)
from tests.service.swapping import Engine

_DELIVERED = 'innerwatch_sink_delivered_total{sink="webhook"}'


def with_webhook(where: Place, receiver: Receiver, more: str = "") -> None:
    """Configure the webhook."""
    (where.folder / "secret").write_text(f"{SECRET}\n")
    section = f'url = "{receiver.url}"\nsecret_file = "secret"\ntimeout_seconds = 1\n'
    where.configure(webhook=section + more)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def flag_one(address: str, request_id: str) -> None:
    """Have an engine send a request that is flagged."""
    with Engine(address, f"engine-{request_id}") as engine:
        engine.hello()
        engine.step(Rows(request_id, 0, [loud(0)]), finished=(request_id,))
        engine.close_stream()


class TestDaemon:
    def test_posts_each_flag_signed(self, where: Place, receiver: Receiver) -> None:
        """
        A flag arrives as JSON without any text, with a signature that the receiver can
        check and an id that it can know it by.
        """
        with_webhook(where, receiver)
        with RunningDaemon(where) as daemon, Client(where.address) as client:
            flag_one(where.address, "chatcmpl-1")
            eventually(lambda: daemon.metric(_DELIVERED) == 1, "it is delivered")
            kept = client.flags()[0]

        post = receiver.posts[0]
        signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}."
        digest = hmac.new(SECRET.encode(), signed.encode() + post.body, hashlib.sha256)
        expected = f"v1,{base64.b64encode(digest.digest()).decode()}"
        assert expected == post.headers["webhook-signature"]
        assert abs(time.time() - int(post.headers["webhook-timestamp"])) < 60
        assert "/hook?a=b" == post.path
        fields = post.fields
        assert fields["id"] == post.headers["webhook-id"]
        assert ("flag", False) == (fields["kind"], fields["is_drill"])
        for name in ("flag_id", "request_id", "detector", "score", "bundle_digest"):
            assert getattr(kept, name) == fields[name]
        assert "token" not in post.body.decode()

    def test_sends_what_it_was_killed_before(
        self, where: Place, receiver: Receiver
    ) -> None:
        """
        A flag that was durable when the daemon was killed arrives after its restart.
        """
        with_webhook(where, receiver)
        receiver.status = 503
        with RunningDaemon(where) as daemon:
            flag_one(where.address, "a")
            eventually(lambda: len(receiver.posts) >= 1, "it is tried")
            daemon.stop(signal.SIGKILL)
        receiver.status = 200
        with RunningDaemon(where) as daemon:
            eventually(lambda: daemon.metric(_DELIVERED) == 1, "it is delivered")

        assert 1 == len(set(receiver.ids))

    def test_sends_again_with_the_same_id(
        self, where: Place, receiver: Receiver
    ) -> None:
        """
        Killed between a delivery and its note, it sends once more what the receiver
        knows by its id.
        """
        with_webhook(where, receiver)
        cursor = where.folder / "audit" / "webhook.json"
        with RunningDaemon(where) as daemon:
            before = cursor.read_text()
            flag_one(where.address, "a")
            eventually(lambda: daemon.metric(_DELIVERED) == 1, "it is delivered")
            daemon.stop(signal.SIGKILL)
        cursor.write_text(before)
        with RunningDaemon(where) as daemon:
            eventually(lambda: len(receiver.posts) == 2, "it is sent again")

        assert 1 == len(set(receiver.ids))

    @pytest.mark.parametrize("behaviour", ["hang", "drip", "hang up"])
    def test_is_not_held_up(
        self, where: Place, receiver: Receiver, behaviour: str
    ) -> None:
        """
        With a receiver that does not answer, every step is scored and acknowledged, and
        the daemon stops when it is told to.
        """
        with_webhook(where, receiver)
        receiver.behaviour = behaviour
        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            engine.hello()
            for i in range(200):
                engine.step(Rows(f"r{i}", 0, [loud(0)]), finished=(f"r{i}",))
            engine.step(Rows("quiet", 0, quiet(1)), finished=("quiet",))
            eventually(
                lambda: daemon.metric("innerwatch_tokens_scored_total") == 201, "scored"
            )
            assert "watching" == daemon.state()
            assert 0 == daemon.stop()

    def test_a_dead_receiver_is_a_number(
        self, where: Place, receiver: Receiver
    ) -> None:
        """
        Nobody listens: attempts fail, flags wait, and the daemon watches on.
        """
        with_webhook(where, receiver)
        receiver.__exit__(None, None, None)
        failures = 'innerwatch_sink_failures_total{reason="connection"}'
        with RunningDaemon(where) as daemon:
            flag_one(where.address, "a")
            eventually(lambda: daemon.metric(failures) >= 2, "it is tried")
            assert 1 == daemon.metric("innerwatch_sink_backlog_flags")
            with Receiver(port=receiver.port) as again:
                eventually(lambda: daemon.metric(_DELIVERED) == 1, "it is delivered")
                assert 1 == len(set(again.ids))
        receiver.__enter__()


class TestConfiguration:
    @pytest.mark.parametrize(
        ("section", "words"),
        [
            ('url = "ftp://x"', ("webhook.url", "expected http")),
            ('url = "http://"', ("webhook.url", "expected http")),
            ('url = "http://x:y"', ("webhook.url", "expected http")),
            ('url = "http://a:b@x"', ("webhook.url", "no user or password")),
            ('url = "http://x"', ("webhook.secret_file", "got none")),
            ('url = "http://x"\nsecret_file = "none"', ("webhook.secret_file",)),
            ('url = "http://x"\nsecret_file = "empty"', ("webhook.secret_file",)),
            (
                'url = "http://x"\nsecret_file = "bad"',
                ("webhook.secret_file", "base64"),
            ),
        ],
    )
    @pytest.mark.parametrize("command", ["check", "serve"])
    def test_that_can_not_sign_is_refused(
        self, where: Place, section: str, words: tuple[str, ...], command: str
    ) -> None:
        """
        Nothing is started that would send notices that nobody can trust.
        """
        (where.folder / "empty").write_text("\n")
        (where.folder / "bad").write_text("whsec_!\n")
        where.configure(webhook=section)

        assert_refused(innerwatch(command, "--config", str(where.config)), *words)

    def test_keys_are_text_or_base64(self) -> None:
        """
        As other webhooks' secrets are written, so may this one's be.
        """
        assert b"text" == secret_key("text")
        assert b"key" == secret_key("whsec_a2V5")


class TestNotice:
    def test_numbers_that_json_lacks_are_null(self) -> None:
        """
        An infinite score is no reason not to be told.
        """
        notice = Notice(
            notice_id="i",
            kind=NoticeKind.FLAG,
            flag_id=1,
            engine="e",
            request_id="r",
            detector="d",
            score=math.inf,
            threshold=math.nan,
            position=0,
            bundle_digest="",
            model="",
            adapter="",
            flagged_at=1.0,
        )

        assert b'"score": null, "threshold": null' in notice.json
        assert b'"score": 1.5' in replace(notice, score=1.5).json
