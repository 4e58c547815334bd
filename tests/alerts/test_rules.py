"""The alerts: promtool's own tests of them, and that nothing in them is made up."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alerts.pages import metric_names
from tests.alerts.programs import program, promtool
from tests.alerts.receiver import Receiver
from tests.bench.drill import with_webhook
from tests.service.builders import ROOT, Place, RunningDaemon, eventually
from tests.service.swapping import Engine

FOLDER = ROOT / "deploy" / "prometheus"
_WORDS = re.compile(r"\binnerwatch_\w+")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


NAMES = [rule["alert"] for rule in rules()]


def cases(alert: str) -> list[dict[str, Any]]:
    """What rules_test.yaml has of *alert*."""
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    return [one for one in tests if one["name"].startswith(f"{alert}: ")]


def with_expression(folder: Path, expression: str) -> Path:
    """A copy of the rules and their tests, where every alert has this expression."""
    shutil.copy(FOLDER / "rules_test.yaml", folder)
    document = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    for rule in document["groups"][0]["rules"]:
        rule["expr"] = expression
    (folder / "rules.yaml").write_text(yaml.safe_dump(document))
    return folder


class TestRules:
    def test_pass_promtool(self) -> None:
        """
        They parse, and every alert comes when it should and not when it should not.
        """
        checked = promtool(
            "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=FOLDER
        )
        tested = promtool("test", "rules", "rules_test.yaml", folder=FOLDER)

        assert 0 == checked.returncode, checked.stderr
        assert 0 == tested.returncode, tested.stdout

    def test_are_at_most_twelve(self) -> None:
        """
        As few as somebody on call can know by heart.
        """
        assert len(NAMES) == len(set(NAMES))
        assert 0 < len(NAMES) <= 12

    @pytest.mark.parametrize("rule", rules(), ids=NAMES)
    def test_have_severity_summary_and_runbook(self, rule: dict[str, Any]) -> None:
        """
        Whoever is woken is told what it is, how bad, and where to read on.
        """
        runbook = ROOT / rule["annotations"]["runbook_url"]

        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert rule["annotations"]["summary"]
        assert ROOT / "deploy" / "runbooks" == runbook.parent
        text = runbook.read_text()
        for heading in (
            "## What it means",
            "## Look at first",
            "## What to do",
            "## When it is harmless",
        ):
            assert heading in text
        assert rule["alert"] in text

    @pytest.mark.parametrize("alert", NAMES)
    def test_have_a_positive_a_negative_and_an_absent_test(self, alert: str) -> None:
        """
        Each is shown to fire, not to fire, and what it does where nothing is scraped.
        """
        kinds = {
            word
            for case in cases(alert)
            for word in ("positive", "negative", "absent")
            if case["name"].startswith(f"{alert}: {word}")
        }
        fires = {
            case["name"]: bool(case["alert_rule_test"][0]["exp_alerts"])
            for case in cases(alert)
        }

        assert {"positive", "negative", "absent"} == kinds
        for name, is_firing in fires.items():
            assert is_firing == ("positive" in name or "that is the alert" in name)
        for case in cases(alert):
            assert ("absent" in case["name"]) == ("input_series" not in case)

    @pytest.mark.parametrize(
        ("expression", "kind"),
        [("vector(1)", "negative"), ("vector(1) > 1", "positive")],
    )
    def test_that_always_or_never_fire_are_found_out(
        self, expression: str, kind: str, tmp_path: Path
    ) -> None:
        """
        The tests of each rule fail where it is always on, and where it is never.
        """
        broken = with_expression(tmp_path, expression)

        tested = promtool("test", "rules", "rules_test.yaml", folder=broken)

        failed = tested.stdout + tested.stderr
        assert [] == [name for name in NAMES if f"name: {name}: {kind}" not in failed]


class TestMetricsOfRules:
    def test_are_those_of_a_daemon(self, where: Place) -> None:
        """
        No alert waits for a metric that does not exist.
        """
        named = {name for rule in rules() for name in _WORDS.findall(rule["expr"])}

        assert named
        with Receiver() as receiver:
            with_webhook(where, receiver)
            with RunningDaemon(where) as daemon, Engine(where.address) as engine:
                engine.hello()
                engine.beat()
                # It verifies its record first thing, and says so when it is done.
                eventually(
                    lambda: "innerwatch_audit_verified" in daemon.get(),
                    "it is verified",
                )
                assert set() == named - metric_names(daemon.get())


class TestExamples:
    def test_of_prometheus_is_a_configuration(self) -> None:
        """
        The example loads, rules included.
        """
        checked = promtool("check", "config", "prometheus.yml", folder=FOLDER)

        assert 0 == checked.returncode, checked.stderr

    def test_of_alertmanager_is_a_configuration(self) -> None:
        """
        The example of Alertmanager loads.
        """
        checked = subprocess.run(
            [program("amtool"), "check-config", str(FOLDER / "alertmanager.yml")],
            capture_output=True,
            text=True,
            check=False,
        )

        assert 0 == checked.returncode, checked.stderr
