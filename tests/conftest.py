"""What every test of the project shares: real parts are demanded in CI."""

import importlib.util
import os
from importlib.util import find_spec

import pytest

# Scripts and helpers for other processes: importing them here would start vLLM.
collect_ignore_glob = ["e2e/drive_*.py", "e2e/*_worker.py", "bench/*.py"]
if find_spec("torch") is None:
    # Of the wheel without vLLM: what runs inside vLLM's process can not be imported.
    collect_ignore_glob += [
        "contract/*transport*.py",
        "service/test_push_bench.py",
        "service/test_ring*.py",
        "service/test_swaps_by_ring.py",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without vLLM: a failure in CI, a skip with the reason elsewhere."""
    if importlib.util.find_spec("vllm") is not None:
        return
    reason = "vLLM is not installed: run deploy/requirements/install.sh .venv"
    for item in items:
        if item.get_closest_marker("vllm"):
            if os.environ.get("CI") == "true":
                pytest.exit(reason, returncode=1)
            item.add_marker(pytest.mark.skip(reason=reason))
