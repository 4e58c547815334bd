import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.service.builders import RunningDaemon
from tests.web.browser import chromium, require_chromium
from tests.web.history import demo_place


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    require_chromium()
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """A daemon with a day's record behind it."""
    with demo_place(time.time()) as where, RunningDaemon(where) as running:
        yield running
