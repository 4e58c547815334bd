"""The audit page in a real Chromium."""

import re
import time

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from service.daemon.audit.pages import PageReader
from service.daemon.audit.rows import LabelRow
from tests.bench.web_record import write_long
from tests.monitor.builders import Rows, loud
from tests.service.builders import RunningDaemon
from tests.service.swapping import Engine
from tests.web.browser import (
    SCHEMES,
    WIDTHS,
    Scheme,
    axe_violations,
    opened,
    sign_in,
    wait_until,
)
from tests.web.history import place_with_bundle
from tests.web.pages import PAGES, page_url

_HERE_IS_IN_SIGHT = """() => {
  const box = document.getElementById("text").getBoundingClientRect();
  const token = document.querySelector("#text i.here").getBoundingClientRect();
  return token.top >= box.top && token.bottom <= box.bottom;
}"""


def reader(daemon: RunningDaemon) -> PageReader:
    return PageReader(daemon.place.folder / "audit")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_serious(
    daemon: RunningDaemon, browser: Browser, width: int, scheme: Scheme
) -> None:
    """
    No page has a serious or critical violation, narrow or wide, light or dark.
    """
    with opened(browser, width=width, scheme=scheme) as page:
        sign_in(page, page_url(daemon, ""))
        for name, path in PAGES.items():
            page.goto(page_url(daemon, path))
            page.locator("details").evaluate_all(
                "all => all.forEach(d => d.open = true)"
            )
            assert [] == axe_violations(page), name


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_scrolls_sideways(
    daemon: RunningDaemon, browser: Browser, width: int
) -> None:
    """
    Whatever is too wide is wrapped, at 375 pixels too.
    """
    with opened(browser, width=width) as page:
        sign_in(page, page_url(daemon, ""))
        for name, path in PAGES.items():
            page.goto(page_url(daemon, path))
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, name


def test_nothing_is_asked_of_anybody_else(
    daemon: RunningDaemon, browser: Browser
) -> None:
    """
    Every request goes to the daemon, and the policy refuses nothing of ours.
    """
    asked: list[str] = []
    said: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    base = page_url(daemon, "")
    with opened(browser) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", hear)
        page.on("pageerror", lambda error: said.append(str(error)))
        sign_in(page, base)
        for name, path in PAGES.items():
            if name != "absent":  # Chromium itself logs a 404.
                page.goto(base + path)
                page.wait_for_timeout(100)

    assert [] == [url for url in asked if not url.startswith(base)]
    assert [] == said


def test_a_flag_is_labelled_without_a_mouse(
    daemon: RunningDaemon, browser: Browser
) -> None:
    """
    From the overview to a labelled flag with nothing but the keyboard.
    """
    with opened(browser) as page:
        page.goto(page_url(daemon, ""))
        tab_to(page, "Review")
        page.keyboard.press("Enter")
        page.get_by_label("Your name").wait_for()
        page.keyboard.type("kay")
        page.keyboard.press("Enter")
        page.wait_for_url(page_url(daemon, "review"))
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url("**/flags/*")
        flag_id = int(re.findall(r"/flags/(\d+)", page.url)[0])
        page.keyboard.press("n")
        page.keyboard.type("two words")
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        page.wait_for_url(lambda url: f"/flags/{flag_id}?" not in url)

    said = reader(daemon).newest(LabelRow, limit=1)[0]
    assert (flag_id, "kay", "false", "two words") == (
        said.flag_id,
        said.reviewer,
        said.label,
        said.note,
    )


def tab_to(page: Page, text: str) -> None:
    """Press Tab until the focus is on the link *text*, and can be seen."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.textContent.trim()")
        if focused == text:
            outline = page.evaluate(
                "getComputedStyle(document.activeElement).outlineStyle"
            )
            assert "none" != outline
            return
    raise AssertionError(f"Tab never came to {text}")


def test_single_keys_can_be_turned_off(daemon: RunningDaemon, browser: Browser) -> None:
    """
    Who dictates, or types by mistake, labels nothing.
    """
    with opened(browser) as page:
        sign_in(page, page_url(daemon, ""))
        page.goto(page_url(daemon, "flags/2"))
        page.get_by_text("Keys", exact=True).click()
        page.get_by_label("Single keys are on").uncheck()
        n_before = len(reader(daemon).labels(2))
        page.keyboard.press("t")
        page.wait_for_timeout(300)

    assert n_before == len(reader(daemon).labels(2))


def test_the_heat_map_says_each_token(daemon: RunningDaemon, browser: Browser) -> None:
    """
    Every token is there as text, and the score under the cursor is read out, by key
    and by pointer.
    """
    detail = reader(daemon).request(
        "engine-1", reader(daemon).flags_by_id([3])[0].request_id
    )
    assert detail is not None
    with opened(browser) as page:
        sign_in(page, page_url(daemon, ""))
        page.goto(page_url(daemon, "flags/3"))
        tokens = page.locator("#text i")
        expect(tokens).to_have_count(len(detail.token_ids) // 4)
        cursor = page.get_by_role("slider", name="Token")
        cursor.press("Home")
        expect(cursor).to_have_attribute("aria-valuenow", "0")
        expect(cursor).to_have_attribute(
            "aria-valuetext", re.compile(r"^Token 0 · .*not above")
        )
        cursor.press("ArrowRight")
        expect(page.locator("#readout")).to_have_text(re.compile("^Token 1 · "))
        tokens.nth(5).hover()
        expect(page.locator("#readout")).to_have_text(re.compile("^Token 5 · "))


def test_a_long_request_opens_at_the_flagged_token(browser: Browser) -> None:
    """
    All of its text is there, and what is in sight is where the flag is, in colour; so
    is what the cursor goes to.
    """
    with place_with_bundle() as where:
        write_long(where.folder / "audit", time.time(), 8192)
        with RunningDaemon(where) as running, opened(browser) as page:
            sign_in(page, page_url(running, ""))
            page.goto(page_url(running, "flags/1"))
            wait_until(page, _HERE_IS_IN_SIGHT)
            n_shown = page.locator("#text i").count()
            assert 0 < n_shown < 8192
            for key in ("End", "Home", "PageDown"):
                page.get_by_role("slider", name="Token").press(key)
                page.wait_for_timeout(300)
                wait_until(page, _HERE_IS_IN_SIGHT)
            assert n_shown < page.locator("#text i").count()


def test_a_new_flag_shows_by_itself(daemon: RunningDaemon, browser: Browser) -> None:
    """
    The overview is right within seconds of a flag, without a click.
    """
    with opened(browser) as page, Engine(daemon.place.address, "engine-9") as engine:
        page.goto(page_url(daemon, ""))
        expect(page.locator(".last-line")).not_to_contain_text("fresh")
        engine.hello()
        engine.beat()
        engine.step(Rows("fresh", 0, [loud(0)] * 3), finished=("fresh",))

        expect(page.locator(".last-line")).to_contain_text("fresh", timeout=15000)
        # And so does the state: the engine has been silent since.
        expect(page.locator(".banner .word")).to_contain_text("Blind", timeout=15000)


def test_it_can_be_read_and_used_without_scripts(
    daemon: RunningDaemon, browser: Browser
) -> None:
    """
    State, filters, tokens and labels need no JavaScript.
    """
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, page_url(daemon, ""), "plain")
    assert page.locator(".banner .word").inner_text()
    page.goto(page_url(daemon, "flags"))
    page.get_by_label("Detector").select_option("ema")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**detector=ema**")
    page.locator(".flag-row a").first.click()
    page.get_by_text("As a table").click()
    assert page.locator("#table tbody tr").count() > 20
    page.get_by_role("button", name="Unsure").click()
    page.wait_for_url("**#labels")
    assert "plain" in page.locator(".said").inner_text()
    context.close()


def test_searching_needs_no_click(daemon: RunningDaemon, browser: Browser) -> None:
    """
    The list follows what is typed, and the address can be shared.
    """
    with opened(browser) as page:
        page.goto(page_url(daemon, "flags"))
        page.keyboard.press("/")
        page.keyboard.type("nothing-like-it")
        expect(page.locator("#flags")).to_contain_text("No flag here")
        expect(page).to_have_url(re.compile("search=nothing-like-it"))
