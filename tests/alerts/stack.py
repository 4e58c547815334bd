"""A real Prometheus and a real Alertmanager, with the rules of deploy/prometheus."""

import contextlib
import json
import socket
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.alerts.programs import program
from tests.service.builders import ROOT, eventually

FOLDER = ROOT / "deploy" / "prometheus"


@dataclass(frozen=True)
class Stack:
    """Where the two answer."""

    prometheus: str
    alertmanager: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Ask Prometheus for what *expression* is now."""
        path = f"/api/v1/query?query={urllib.parse.quote(expression)}"
        with urllib.request.urlopen(self.prometheus + path, timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        return found

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Return what Alertmanager has as firing under *name*."""
        asked = urllib.parse.quote(f'alertname="{name}"')
        url = f"{self.alertmanager}/api/v2/alerts?active=true&filter={asked}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())
        return found

    def n_up(self) -> int:
        """Return how many daemons were scraped."""
        return len(self.query('up{job="innerwatch"} == 1'))


@contextlib.contextmanager
def stack(
    metrics_urls: Sequence[str],
    *,
    scrape_seconds: float = 5.0,
    evaluation_seconds: float = 5.0,
) -> Iterator[Stack]:
    """Scrape the daemons at *metrics_urls*, and alert."""
    ports = [_free_port(), _free_port()]
    made = Stack(*(f"http://127.0.0.1:{port}" for port in ports))
    targets = [
        url.removeprefix("http://").removesuffix("/metrics") for url in metrics_urls
    ]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        config = {
            "global": {
                "scrape_interval": f"{scrape_seconds * 1e3:.0f}ms",
                "scrape_timeout": f"{scrape_seconds * 1e3:.0f}ms",
                "evaluation_interval": f"{evaluation_seconds * 1e3:.0f}ms",
            },
            "rule_files": [str(FOLDER / "rules.yaml")],
            "alerting": {
                "alertmanagers": [
                    {"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}
                ]
            },
            "scrape_configs": [
                {"job_name": "innerwatch", "static_configs": [{"targets": targets}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        commands = [
            [
                program("prometheus-alertmanager"),
                f"--config.file={FOLDER / 'alertmanager.yml'}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{ports[1]}",
                "--cluster.listen-address=",
            ],
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{ports[0]}",
                "--enable-feature=exemplar-storage",
            ],
        ]
        for i, command in enumerate(commands):
            running.enter_context(_process(command, folder / f"{i}.log"))
        for url in (made.prometheus, made.alertmanager):
            eventually(partial(_is_ready, url), f"{url} is ready")
        eventually(lambda: made.n_up() == len(targets), "every daemon is scraped")
        yield made


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"{url}/-/ready", timeout=2).status == 200)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
