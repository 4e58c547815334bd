"""A real Chromium, and what it takes to look at the page with it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (375, 1920)
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def require_chromium() -> None:
    """Fail in CI, and skip elsewhere, where there is no Chromium."""
    if CHROMIUM.exists():
        return
    message = f"{CHROMIUM} is missing: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=list(_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, *, width: int = 1280, scheme: Scheme = "light"
) -> Iterator[Page]:
    """A page in a session of its own."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    try:
        yield context.new_page()
    finally:
        context.close()


def sign_in(page: Page, url: str, name: str = "ada") -> None:
    """Give the reviewer's name."""
    page.goto(f"{url}name")
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Go on").click()
    page.wait_for_url(url)


def wait_until(page: Page, expression: str, seconds: float = 30.0) -> None:
    """
    Wait until the JavaScript *expression* is true.

    Playwright's own waiting evaluates in the page, which the page's policy forbids.
    """
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        page.wait_for_timeout(20)


def axe_violations(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical on *page*."""
    source = resources.files("axe_playwright_python") / "axe.min.js"
    page.evaluate(source.read_text() + "; undefined")
    found = page.evaluate(
        "() => axe.run(document, {resultTypes: ['violations']})"
        ".then((r) => r.violations.filter((v) => ['serious', 'critical']"
        ".includes(v.impact)).map((v) => v.id + ': ' + v.nodes.map((n) =>"
        " n.target + ' ' + (n.failureSummary || '')).slice(0, 3).join(' | ')))"
    )
    return [str(one) for one in found]
