"""The page's benchmark, in short."""

import json

import pytest

from tests.bench import web
from tests.web.browser import require_chromium


def test_the_benchmark_measures_every_page(capsys: pytest.CaptureFixture[str]) -> None:
    """
    With a small record it opens every page and draws a heat map.
    """
    require_chromium()
    web.main(["--records", "400", "--rounds", "1", "--tokens", "300", "--json"])

    facts = json.loads(capsys.readouterr().out)
    assert len(web.paths(200)) == len(facts["pages"])
    assert all(one["p50"] > 0 for one in facts["pages"])
    assert 1 == len(facts["drawing_ms"])
