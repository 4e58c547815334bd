"""The Grafana board: every query parses, and names metrics that a daemon has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.alerts.pages import metric_names
from tests.alerts.programs import promtool
from tests.alerts.receiver import Receiver
from tests.bench.drill import with_webhook
from tests.service.builders import ROOT, Place, RunningDaemon, eventually
from tests.service.swapping import Engine, saved_bundle

BOARD = ROOT / "deploy" / "grafana" / "innerwatch.json"
# What Grafana puts in before it asks.
_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
_WORDS = re.compile(r"\binnerwatch_\w+")


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


def queries() -> Iterator[str]:
    for panel in board()["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in _VARIABLES.items():
                query = query.replace(name, value)
            yield query


def test_every_query_parses(tmp_path: Path) -> None:
    """
    Prometheus takes each one, with Grafana's variables filled in.
    """
    rules = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries())]
    group = {"groups": [{"name": "board", "rules": rules}]}
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(group))

    checked = promtool("check", "rules", "board.yaml", folder=tmp_path)

    assert 0 == checked.returncode, checked.stderr
    assert len(rules) > len(board()["panels"]) > 10


def test_every_query_names_metrics_that_exist(where: Place) -> None:
    """
    No panel is empty because of a name: all are on a daemon's page that has an engine,
    a shadow and a webhook.
    """
    with Receiver() as receiver:
        with_webhook(where, receiver)
        path = saved_bundle(where.folder)
        with RunningDaemon(where) as daemon, Engine(where.address) as engine:
            engine.hello(k_max=8)
            engine.beat()
            engine.load(path)
            engine.shadow("other:1")
            eventually(
                lambda: "innerwatch_audit_verified" in daemon.get(), "it is verified"
            )
            page = daemon.get()
    text = " ".join(queries()) + json.dumps(board()["templating"])
    named = set(_WORDS.findall(text))

    assert set() == named - metric_names(page)


def test_panels_do_not_overlap() -> None:
    """
    Each has its own place in the 24 columns, an id, a title and a query.
    """
    taken: set[tuple[int, int]] = set()
    panels = board()["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        assert panel["title"]
        assert panel["targets"]
        taken |= cells
    assert len(panels) == len({panel["id"] for panel in panels})
