"""The audit page of a real daemon, as a browser without scripts gets it."""

import re
import time
from collections.abc import Iterator

import pytest

from service.daemon.audit.pages import PageReader
from service.daemon.audit.rows import LabelRow, ViewRow
from tests.monitor.builders import Rows, loud, quiet
from tests.service.builders import Place, RunningDaemon, eventually, place
from tests.service.swapping import Engine
from tests.web.history import demo_place
from tests.web.pages import PAGES
from tests.web.visitor import Visitor

pytest.importorskip("uvicorn")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a day's record behind it."""
    with demo_place(time.time()) as where, RunningDaemon(where) as running:
        yield running


@pytest.fixture
def visitor(daemon: RunningDaemon) -> Visitor:
    return Visitor.named(daemon)


def reader(daemon: RunningDaemon) -> PageReader:
    return PageReader(daemon.place.folder / "audit")


def flag_links(text: str) -> list[int]:
    """Return the flags that a page lists, in order."""
    return [int(n) for n in re.findall(r'class="request"><a href="/flags/(\d+)', text)]


@pytest.fixture
def small() -> Iterator[Place]:
    """A place with an empty record, whose configuration serves the page."""
    with place() as where:
        where.configure(web="enabled = true\nport = 0")
        yield where


def test_the_state_is_the_first_thing_that_is_said(small: Place) -> None:
    """
    Waiting, watching, blind: the overview says which and why, and what was last.
    """
    with RunningDaemon(small) as daemon:
        visitor = Visitor(daemon)
        why = "no engine has connected yet"
        eventually(lambda: why in visitor.get("/live").text, "it waits")
        text = visitor.get("/").text
        assert "Waiting" in text
        assert "Nothing yet" in text
        with Engine(small.address) as engine:
            engine.hello()
            engine.beat()
            engine.step(
                Rows("calm", 0, quiet(3)), Rows("odd", 0, [loud(0)]), finished=("odd",)
            )
            eventually(lambda: "Watching" in visitor.get("/live").text, "it watches")
            text = visitor.get("/").text
            assert "every token is scored" in text
            assert "4 of 4 tokens scored" in text
            assert re.search(r"<strong>max</strong> on odd", text)
            eventually(lambda: "Blind" in visitor.get("/live").text, "it is blind")
        assert "silent" in visitor.get("/live").text or "no engine" in (
            visitor.get("/live").text
        )


def test_the_page_is_off_unless_it_is_asked_for(own_daemon: RunningDaemon) -> None:
    """
    Nothing listens that could show a prompt to another user of the machine.
    """
    assert not any("audit page" in line for line in own_daemon.log)


@pytest.mark.parametrize(
    ("query", "is_wanted"),
    [
        ("detector=ema", lambda flag: flag.detector == "ema"),
        ("verdict=partial", lambda flag: flag.verdict == "partial"),
        ("label=true", lambda flag: flag.label == "true"),
        ("label=none", lambda flag: flag.label == ""),
        ("label=disputed", lambda flag: flag.is_disputed),
        ("search=req-0001", lambda flag: "req-0001" in flag.request_id),
        ("detector=&label=&verdict=nonsense&order=what", lambda flag: True),
    ],
)
def test_the_list_shows_what_is_asked_for(
    daemon: RunningDaemon, visitor: Visitor, query: str, is_wanted: object
) -> None:
    """
    A filter keeps the flags it names, all of them, and nonsense asks for nothing.
    """
    assert callable(is_wanted)
    shown = []
    url = f"/flags?{query}"
    while url:
        text = visitor.get(url).text
        shown += flag_links(text)
        link = re.search(r'<a href="([^"]+)" rel="next"', text)
        url = link[1].replace("&amp;", "&") if link else ""
    flags = reader(daemon).flags(limit=1000)

    assert [flag.flag_id for flag in flags if is_wanted(flag)] == shown


def test_scores_order_the_list(daemon: RunningDaemon, visitor: Visitor) -> None:
    """
    The highest score comes first, over all detectors.
    """
    shown = flag_links(visitor.get("/flags?order=highest").text)
    flags = sorted(reader(daemon).flags(limit=1000), key=lambda flag: -flag.score)

    assert [flag.flag_id for flag in flags][: len(shown)] == shown


def test_nobody_sees_a_request_without_a_name(daemon: RunningDaemon) -> None:
    """
    Who has given none is asked for it, and comes back to the page after it.
    """
    stranger = Visitor(daemon)
    n_views = len(reader(daemon).newest(ViewRow, limit=1000))

    for path in ("/flags/3", "/review", "/review/next"):
        assert 303 == stranger.get(path).status
    assert (
        "/name?next=/flags/3%3Fqueue%3Dnew"
        == stranger.get("/flags/3?queue=new").location
    )
    assert n_views == len(reader(daemon).newest(ViewRow, limit=1000))

    token = stranger.token("/name")
    assert (
        "/flags/3"
        == stranger.post("/name", token, name=" Ada \x00 L ", next="/flags/3").location
    )
    assert "Ada L" in stranger.get("/flags/3").text


@pytest.mark.parametrize("url", ["//evil.example", "https://evil.example", "/\\evil"])
def test_a_name_leads_nowhere_else(daemon: RunningDaemon, url: str) -> None:
    """
    A link that asks for a name can not send anybody to another site.
    """
    visitor = Visitor(daemon)

    assert (
        "/"
        == visitor.post("/name", visitor.token("/name"), name="x", next=url).location
    )


def test_whoever_saw_tokens_is_in_the_record(
    daemon: RunningDaemon, visitor: Visitor
) -> None:
    """
    When the page has come, the record says who got it; lists are no views.
    """
    request_id = reader(daemon).flags_by_id([4])[0].request_id
    visitor.get("/flags")
    assert 200 == visitor.get("/flags/4").status

    view = reader(daemon).newest(ViewRow, limit=1)[0]
    assert ("ada", request_id, "page") == (view.viewer, view.request_id, view.place)


def test_a_flag_shows_what_its_parts_said(
    daemon: RunningDaemon, visitor: Visitor
) -> None:
    """
    Every contribution has a row with its name and its share; of none it says why.
    """
    found = reader(daemon).flag(4)
    assert found is not None
    assert found.contributions
    text = visitor.get("/flags/4").text

    for one in found.contributions:
        assert f"<strong>{one.name}</strong>" in text
        assert f"{100 * one.share:.0f} %" in text


@pytest.mark.parametrize("keep", ["hash", "nothing"])
def test_without_tokens_there_is_nothing_to_see(keep: str, small: Place) -> None:
    """
    Where the record keeps no tokens the page shows scores, and that is no view.
    """
    small.configure(
        audit=f'directory = "audit"\nkeep = "{keep}"', web="enabled = true\nport = 0"
    )
    with RunningDaemon(small) as daemon, Engine(small.address) as engine:
        engine.hello()
        engine.step(Rows("odd", 0, [loud(0)] * 3), finished=("odd",))
        text = Visitor.named(daemon).get("/flags/1").text

        assert "keeps no tokens" in text
        assert "<strong>blocks.1.hook_resid_post</strong>" in text
        assert '"token_ids": []' in text
        assert [] == reader(daemon).newest(ViewRow)


def test_a_label_is_in_the_record_when_it_is_answered(
    daemon: RunningDaemon, visitor: Visitor
) -> None:
    """
    True, with its note and the reviewer's name, on that flag.
    """
    answer = visitor.label(7, "true", note="  clear case ")

    assert (303, "/flags/7#labels") == (answer.status, answer.location)
    said = reader(daemon).newest(LabelRow, limit=1)[0]
    assert (7, "true", "clear case", "ada") == (
        said.flag_id,
        said.label,
        said.note,
        said.reviewer,
    )
    assert "clear case" in visitor.get("/flags/7").text


def test_two_reviewers_never_get_the_same_flag(daemon: RunningDaemon) -> None:
    """
    What one looks at is kept for them, until they go on.
    """
    ada, bob = Visitor.named(daemon, "ann"), Visitor.named(daemon, "bob")
    first = ada.get("/review/next").location
    second = bob.get("/review/next").location

    assert first != second
    assert first == ada.get("/review/next").location
    assert "with ann" in Visitor.named(daemon, "eve").get("/review").text
    flag_id = int(re.findall(r"/flags/(\d+)", first)[0])
    after = ada.label(flag_id, "unsure", queue="new").location
    assert after not in (first, second)


def test_queues_hold_what_waits_for_a_reviewer(daemon: RunningDaemon) -> None:
    """
    A second opinion is asked of somebody else, and a dispute is shown to all.
    """
    ada, bob = Visitor.named(daemon, "amy"), Visitor.named(daemon, "ben")
    flag_id = flag_links(ada.get("/review?queue=new").text)[-1]
    ada.label(flag_id, "true")

    assert flag_id not in flag_links(ada.get("/review?queue=new").text)
    assert flag_id not in reader_ids(daemon, "amy")
    assert flag_id in reader_ids(daemon, "ben")
    bob.label(flag_id, "false")
    assert flag_id not in reader_ids(daemon, "ben")
    assert flag_id in [flag.flag_id for flag in reader(daemon).disputed()]
    assert flag_id in flag_links(bob.get("/review?queue=disputed").text)


def reader_ids(daemon: RunningDaemon, reviewer: str) -> list[int]:
    return [flag.flag_id for flag in reader(daemon).second_opinions(reviewer)]


def test_no_page_holds_a_script_a_style_or_another_site(
    daemon: RunningDaemon, visitor: Visitor
) -> None:
    """
    Every page keeps the policy it is sent with: nothing inline, nothing from elsewhere.
    """
    for name, path in {**PAGES, "live": "live", "css": "static/style.css"}.items():
        answer = visitor.get(f"/{path}")
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy, name
        assert "unsafe" not in policy
        assert "nosniff" == answer.headers["X-Content-Type-Options"]
        assert "DENY" == answer.headers["X-Frame-Options"]
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", text), name
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script or 'type="application/json"' in script
        is_kept = name == "css"
        assert is_kept == ("no-store" not in answer.headers["Cache-Control"])


def test_what_a_client_sends_is_text(small: Place) -> None:
    """
    A request id that is markup is shown, not run.
    """
    with RunningDaemon(small) as daemon, Engine(small.address) as engine:
        engine.hello()
        evil = "<script>alert(1)</script>"
        engine.step(Rows(evil, 0, [loud(0)] * 3), finished=(evil,))
        visitor = Visitor.named(daemon, "<b>eve</b>")
        for path in ("/", "/flags", "/flags/1", "/review"):
            text = visitor.get(path).text
            assert "&lt;script&gt;alert(1)" in text
            assert "<script>alert" not in text
            assert "<b>eve" not in text


def test_a_proxy_says_who_it_is(small: Place) -> None:
    """
    With a header of a reverse proxy the page asks nobody, and believes no form.
    """
    small.configure(web='enabled = true\nport = 0\nuser_header = "X-User"')
    with RunningDaemon(small) as daemon, Engine(small.address) as engine:
        engine.hello()
        engine.step(Rows("odd", 0, [loud(0)] * 3), finished=("odd",))
        nobody, ada = Visitor(daemon), Visitor(daemon, {"X-User": "ada@example.org"})

        assert 303 == nobody.get("/flags/1").status
        assert "the header X-User" in nobody.get("/name").text
        assert 200 == ada.get("/flags/1").status
        view = reader(daemon).newest(ViewRow, limit=1)[0]
        assert "ada@example.org" == view.viewer


def test_pages_that_are_not_there(visitor: Visitor) -> None:
    """
    A wrong address is one sentence and a 404.
    """
    for path in ("/nowhere", "/flags/999999", f"/flags/{10**30}", "/static/x.js"):
        assert 404 == visitor.get(path).status, path
    assert "There is no flag 999999." in visitor.get("/flags/999999").text


def test_detectors_show_the_promise_and_the_shadow(
    daemon: RunningDaemon, visitor: Visitor
) -> None:
    """
    Version, digest, alpha, what the check found, and each detector's boundary.
    """
    text = visitor.get("/detectors").text

    assert "demo:3" in text
    assert "at most 5.0 % of benign requests flagged" in text
    assert "95 %:" in text
    for name in ("max", "ema", "mean"):
        assert f"<strong>{name}</strong>" in text


def test_the_page_outlives_a_stop_of_nobody(small: Place) -> None:
    """
    A browser that holds its connection open does not hold the daemon up.
    """
    with RunningDaemon(small) as daemon:
        Visitor(daemon).get("/")
        assert 0 == daemon.stop()


def test_ids_are_shown_without_a_tokenizer(small: Place) -> None:
    """
    Without a tokenizer there are token ids, and the page says why.
    """
    with RunningDaemon(small) as daemon, Engine(small.address) as engine:
        engine.hello()
        engine.step(Rows("odd", 0, [loud(0)] * 3), finished=("odd",))
        text = Visitor.named(daemon).get("/flags/1").text

    assert "no tokenizer is configured" in text
    assert '"token_ids": [100, 101, 102]' in text
    assert '"texts": []' in text
