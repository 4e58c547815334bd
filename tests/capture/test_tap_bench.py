"""The benchmark of the tap's operators, in short."""

import subprocess
import sys
from pathlib import Path


def test_every_size_is_printed_with_both_figures() -> None:
    """The short form measures both operators, now and as they were first written."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.bench.tap", "--tiny", "--seconds=0.01"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    assert 5 == len(said)
    for line in said[1:]:
        _, _, figures = line.partition(": ")
        for figure in figures.split(", "):
            name, now, _, before = figure.split()
            assert name in ("project", "copy")
            assert float(now) > 0
            assert float(before) > 0
