"""
Takes a picture of every page, narrow and wide, light and dark, for people to look at.

usage: python -m tests.web.screenshots FOLDER
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from tests.monitor.builders import Rows, quiet
from tests.service.builders import RunningDaemon, eventually
from tests.service.swapping import Engine
from tests.web.browser import SCHEMES, WIDTHS, chromium, opened, sign_in
from tests.web.history import demo_place
from tests.web.pages import PAGES, page_url


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pages", nargs="*", choices=PAGES, default=list(PAGES))
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    with (
        demo_place(time.time()) as where,
        RunningDaemon(where) as daemon,
        Engine(where.address) as engine,
        chromium() as browser,
    ):
        engine.hello()
        engine.beat()
        engine.step(Rows("live", 0, quiet(40)), finished=("live",))
        eventually(lambda: daemon.state() == "watching", "the daemon watches")
        for scheme in SCHEMES:
            for width in WIDTHS:
                with opened(browser, width=width, scheme=scheme) as page:
                    sign_in(page, page_url(daemon, ""))
                    for name in args.pages:
                        engine.beat()
                        page.goto(page_url(daemon, PAGES[name]))
                        page.wait_for_timeout(300)
                        file = args.folder / f"{name}-{width}-{scheme}.png"
                        page.screenshot(path=file, full_page=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
