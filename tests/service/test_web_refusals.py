"""What is refused: a configuration in one line, an address or a form as a page."""

import socket
from collections.abc import Iterator

import pytest

from service.daemon.audit.pages import PageReader
from service.daemon.audit.records import Entries
from tests.service.builders import (
    Place,
    RunningDaemon,
    assert_refused,
    innerwatch,
    place,
)
from tests.service.recording import flag, write
from tests.web.visitor import Visitor

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """One that serves the page of a record with one flag."""
    with place() as where:
        write(where.folder / "audit", Entries(flags=[flag("r1")]))
        where.configure(web="enabled = true\nport = 0")
        with RunningDaemon(where) as running:
            yield running


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('tokenizer = "nowhere.json"', "web.tokenizer"),
        ('host = "0.0.0.0"', "web.allow_insecure"),
        ('host = "192.0.2.7"\nallow_insecure = true', "web.host"),
        ("port = 70000", "web.port"),
    ],
)
def test_what_can_not_be_served(
    where: Place, command: str, line: str, word: str
) -> None:
    """
    The line names the key, and nothing was started.
    """
    port = "" if line.startswith("port") else "port = 0\n"
    where.configure(web=f"enabled = true\n{port}{line}")

    assert_refused(innerwatch(command, "--config", str(where.config)), word)


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_taken_port_is_named(where: Place, command: str) -> None:
    """
    The line names the port that somebody else listens on.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where.configure(web=f"enabled = true\nport = {port}")

        result = innerwatch(command, "--config", str(where.config))

    assert_refused(result, str(port), "web.port")


def test_no_number_in_an_address_is_too_large(where: Place) -> None:
    """
    Pages far beyond the record's end are empty, or as good as not asked for.
    """
    write(where.folder / "audit", Entries(flags=[flag("r1"), flag("r2", "mean")]))
    where.configure(web="enabled = true\nport = 0")
    with RunningDaemon(where) as daemon:
        visitor = Visitor(daemon)
        for order in ("newest", "oldest", "highest", "lowest"):
            for name in ("offset", "before", "after"):
                for more in ("", "&label=none", "&detector=max"):
                    query = f"order={order}&{name}={2**63 - 1}{more}"
                    assert 200 == visitor.get(f"/flags?{query}").status, query


def test_a_page_that_is_fetched_again_keeps_the_name(where: Place) -> None:
    """
    The overview asks again and again: an answer that is late does not bring the cookie
    of before back.
    """
    where.configure(web="enabled = true\nport = 0")
    with RunningDaemon(where) as daemon:
        visitor = Visitor(daemon)
        assert visitor.get("/live").headers["Set-Cookie"]
        assert visitor.get("/live").headers["Set-Cookie"] is None


def test_a_forged_form_changes_nothing(daemon: RunningDaemon) -> None:
    """
    Without this session's token, or from another site, a label is refused.
    """
    visitor = Visitor.named(daemon)
    other = Visitor.named(daemon, "eve").token("/flags/1")
    own = visitor.token("/flags/1")

    assert 403 == visitor.post("/flags/1/label", "", label="false").status
    assert 403 == visitor.post("/flags/1/label", other, label="false").status
    visitor.headers["Sec-Fetch-Site"] = "cross-site"
    assert 403 == visitor.post("/flags/1/label", own, label="false").status
    del visitor.headers["Sec-Fetch-Site"]
    assert 400 == visitor.post("/flags/1/label", own, label="perhaps").status
    assert 400 == visitor.post("/flags/1/label", own, note="x" * 70000).status
    assert 404 == visitor.post("/flags/99999/label", own, label="false").status
    assert [] == PageReader(daemon.place.folder / "audit").labels(1)


def test_another_name_for_this_address_is_refused(daemon: RunningDaemon) -> None:
    """
    A site that lets its own name mean 127.0.0.1 gets nothing.
    """
    visitor = Visitor.named(daemon)
    assert 421 == visitor.get("/", Host="evil.example").status
    assert 421 == visitor.get("/", Host="evil.example:80").status
    assert 421 == visitor.get("/", Host="").status
    assert 200 == visitor.get("/", Host="localhost:1").status


def test_a_session_is_not_made_up(daemon: RunningDaemon) -> None:
    """
    A cookie that the daemon has not signed names nobody.
    """
    forged = Visitor(daemon, {"Cookie": "innerwatch=abc.YWRh.00"})

    assert 303 == forged.get("/flags/1").status
