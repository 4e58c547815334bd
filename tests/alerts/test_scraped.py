"""What a real Prometheus has of a daemon that it scrapes."""

import json
import urllib.request

from probes.bundle import save_bundle
from tests.alerts.stack import Stack, stack
from tests.monitor.builders import Rows, loud, quiet
from tests.service.builders import ROOT, Client, Place, RunningDaemon, eventually
from tests.service.swapping import Engine
from tests.web.history import calibrated


def _exemplars(both: Stack) -> list[str]:
    """Request ids of the exemplars that Prometheus holds of the counter of flags."""
    path = "/api/v1/query_exemplars?query=innerwatch_flags_total&start=0&end=9999999999"
    with urllib.request.urlopen(both.prometheus + path, timeout=10) as answer:
        found = json.loads(answer.read())["data"]
    return [one["labels"]["request_id"] for row in found for one in row["exemplars"]]


def test_flags_lead_to_a_request_and_join_with_vllms_metrics(
    own_daemon: RunningDaemon, engine: Engine
) -> None:
    """
    Prometheus stores the exemplar, and a query by model_name finds the flag.
    """
    with stack([own_daemon.url], scrape_seconds=0.5, evaluation_seconds=1) as both:
        engine.step(Rows("chatcmpl-3", 0, [loud(0)]), finished=("chatcmpl-3",))

        eventually(lambda: "chatcmpl-3" in _exemplars(both), "the exemplar is stored")
        by_model = "sum by (model_name) (innerwatch_flags_total) == 1"
        eventually(lambda: bool(both.query(by_model)), "the flag is counted")
        assert "tiny-chat" == both.query(by_model)[0]["metric"]["model_name"]


def test_flags_are_an_alert_that_leads_to_them(where: Place) -> None:
    """
    Requests that detectors really flag, far above the budget, fire in Alertmanager;
    the alert names the daemon and a runbook, and the record has each request.
    """
    save_bundle(where.folder / "calibrated", calibrated())
    where.configure(detectors='bundle = "calibrated"')
    alert, names = "InnerwatchFlagsAboveBudget", [f"chatcmpl-{i}" for i in range(20)]
    with (
        RunningDaemon(where) as daemon,
        Engine(where.address) as engine,
        stack([daemon.url], scrape_seconds=0.5, evaluation_seconds=1) as both,
    ):
        engine.hello(served_model_name="tiny-chat")
        for i in range(100):
            name = f"calm-{i}"
            engine.step(Rows(name, 0, quiet(1)), finished=(name,))
        assert [] == both.alerts(alert)
        for name in names:
            engine.step(Rows(name, 0, [loud(0, 100.0)]), finished=(name,))

        eventually(lambda: bool(both.alerts(alert)), "the alert fires")
        (fired,) = both.alerts(alert)
        with Client(where.address) as client:
            flagged = {flag.request_id for flag in client.flags()}

    target = daemon.url.removeprefix("http://").removesuffix("/metrics")
    assert ("page", target) == (
        fired["labels"]["severity"],
        fired["labels"]["instance"],
    )
    assert "above the false-flag budget" in fired["annotations"]["summary"]
    assert (ROOT / fired["annotations"]["runbook_url"]).is_file()
    assert set(names) <= flagged


def test_a_model_without_a_watch_is_an_alert(
    own_daemon: RunningDaemon, engine: Engine
) -> None:
    """
    An engine that falls silent is a pending alert, with the rules as they ship.
    """
    with stack([own_daemon.url], scrape_seconds=0.5, evaluation_seconds=1) as both:
        # Silent for more than `blind_after_seconds`; it fires after 30 s of that.
        pending = 'ALERTS{alertname="InnerwatchBlind", alertstate="pending"}'
        eventually(lambda: bool(both.query(pending)), "the alert is on its way")
