"""Debian's Prometheus, promtool and Alertmanager: demanded in CI, skipped elsewhere."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PACKAGES = {
    "amtool": "prometheus-alertmanager",
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
}
_PATIENCE_SECONDS = 120.0


def program(name: str) -> str:
    """
    Return where the program is.

    Without it the test fails where CI=true, and is skipped with a reason elsewhere.
    """
    found = shutil.which(name)
    if found is not None:
        return found
    reason = f"{name} is not installed: apt-get install {_PACKAGES[name]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def promtool(
    *arguments: str, given: str = "", folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run promtool to its end, with *given* on its standard input."""
    return subprocess.run(
        [program("promtool"), *arguments],
        input=given,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )
