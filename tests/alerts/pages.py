"""Reads a /metrics page as Prometheus would."""

import urllib.request

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def series(page: str) -> list[str]:
    """Return the series of *page*, each name and labels, in order."""
    lines = [line for line in page.splitlines() if line and not line.startswith("#")]
    return [line.partition(" # ")[0].rpartition(" ")[0] for line in lines]


def metric_names(page: str) -> set[str]:
    """Return the names that a query may use."""
    return {one.partition("{")[0] for one in series(page)}


def openmetrics(url: str) -> str:
    """Fetch *url* as OpenMetrics, which has exemplars."""
    request = urllib.request.Request(url, headers={"Accept": OPENMETRICS})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
    return text
