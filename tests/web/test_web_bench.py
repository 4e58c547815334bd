"""The page's benchmark, in short."""

import json
import subprocess
import sys

from tests.bench.web import paths
from tests.service.builders import ROOT
from tests.web.browser import require_chromium


def test_the_benchmark_measures_every_page() -> None:
    """
    With a small record it opens every page and draws a heat map.
    """
    require_chromium()
    # A process of its own: one can have Playwright running once.
    arguments = ("--records", "400", "--rounds", "1", "--tokens", "300", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.web", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert "Traceback" not in done.stderr, done.stderr
    facts = json.loads(done.stdout)
    assert len(paths(200)) == len(facts["pages"])
    assert all(one["p50"] > 0 for one in facts["pages"])
    assert 1 == len(facts["drawing_ms"])
