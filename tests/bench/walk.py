"""The README's "A first alert, and a first label", walked as it is written there.

usage: python -m tests.bench.walk        (from the root of a checkout)

Starts Prometheus and Alertmanager with the README's own lines, then `make demo
ARGS=--keep`, which sets up what is missing. Waits for the alert in Alertmanager, labels
a flag with the keyboard in a real Chromium, finds the label with `innerwatch audit`,
and drills. Prints seconds from the first line on; ends with status 1 if it takes ten
minutes or more. Ports 9090, 9093, 9464 and 9465 have to be free.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.web.browser import chromium, opened

BAR_SECONDS = 600.0
ROOT = Path(__file__).parents[2]
ALERTS = "http://127.0.0.1:9093/api/v2/alerts"
PAGE = "http://127.0.0.1:9465/"
_ALERT_SECONDS = 120.0


def main() -> int:
    """Walk, print and return the exit status."""
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    os.chdir(ROOT)
    with ExitStack() as stack:
        for line in background_lines((ROOT / "README.md").read_text()):
            start = subprocess.Popen(["bash", "-c", f"exec {line}"])
            stack.callback(start.wait)
            stack.callback(start.terminate)
        say("Prometheus and Alertmanager are started")
        shown = subprocess.run(
            ["make", "demo", "ARGS=--keep"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        ending = re.search(r"^end both +kill ([\d ]+)$", shown, re.M)
        drilling = re.search(r"^drill +innerwatch (drill .+)$", shown, re.M)
        assert ending, shown
        assert drilling, shown
        for pid in map(int, ending.group(1).split()):
            stack.callback(end, pid)
        say("the demo has run")
        wait_for_alert("InnerwatchFlagsAboveBudget")
        say("InnerwatchFlagsAboveBudget fires")
        label()
        say("a flag is labelled")
        listed = innerwatch(
            "audit", "list", "labels", "--config", "build/demo/monitor.toml"
        )
        assert "label=true" in listed, listed
        say(f"the record has it: {listed.strip()}")
        words = [*drilling.group(1).split(), "--alertmanager", "http://127.0.0.1:9093"]
        say(f"drill: {' '.join(innerwatch(*words).split())}")
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s, bar {BAR_SECONDS:.0f} s")
    return int(seconds >= BAR_SECONDS)


def background_lines(readme: str) -> list[str]:
    """Return the section's commands that go to the background; makes their folder."""
    section = readme.partition("## A first alert")[2].partition("\n## ")[0]
    code = section.replace("\\\n", " ")
    (ROOT / "build").mkdir(exist_ok=True)
    for name in ("prometheus", "alertmanager"):  # No alert of an earlier walk.
        shutil.rmtree(ROOT / "build" / name, ignore_errors=True)
    lines = [line.strip() for line in code.splitlines()]
    found = [line.removesuffix("&") for line in lines if line.endswith("&")]
    assert len(found) == 2, found
    return found


def wait_for_alert(name: str) -> None:
    """Wait until Alertmanager has *name* as active."""
    deadline = time.monotonic() + _ALERT_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(ALERTS, timeout=5) as answer:
            alerts = json.loads(answer.read())
            if name in {alert["labels"]["alertname"] for alert in alerts}:
                return
        time.sleep(0.5)
    raise TimeoutError(f"{name} did not fire within {_ALERT_SECONDS:g} s")


def label() -> None:
    """Go from the overview to the queue, give a name, and say that a flag is right."""
    with chromium() as browser, opened(browser) as page:
        page.goto(PAGE)
        assert "watching" in page.inner_text("body").lower()
        page.get_by_role("link", name="Review flags").click()
        page.get_by_label("Your name").fill("new")
        page.get_by_role("button", name="Go on").click()
        page.get_by_role("link", name="Start with the newest").click()
        page.get_by_role("heading", name="Is the flag right?").wait_for()
        before = page.url
        page.keyboard.press("t")
        page.wait_for_url(lambda url: url != before)


def innerwatch(*words: str) -> str:
    """Run the command and return what it printed."""
    return subprocess.run(
        [".venv/bin/innerwatch", *words], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def end(pid: int) -> None:
    """End a process that the demo has left running, and wait until it has."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while True:
            os.kill(pid, 0)
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
