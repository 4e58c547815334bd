# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""The short form of the benchmark of fitting, and memory while it runs."""

import argparse
import tracemalloc
from pathlib import Path

import pytest

from tests.probes.builders import require_sklearn

require_sklearn()

from probes import load_dataset
from probes.fit import chunks
from probes.fit.streamed import fit_streamed
from tests.bench.fitting import measure, planted, tasks, write

N_TOKENS, WIDTH, N_PROBES = 20_000, 128, 6


def test_planted_directions_are_found(tmp_path: Path) -> None:
    """
    Every kind of probe finds the direction that was planted for it.
    """
    args = argparse.Namespace(
        tokens=N_TOKENS, width=WIDTH, probes=N_PROBES, passes=30, full=False
    )

    found = measure(tmp_path, args)

    assert N_TOKENS == found["n_tokens"]
    cosines = found["lowest_cosine_with_planted"]
    assert isinstance(cosines, dict)
    assert {"mass_mean", "lda", "logistic"} == cosines.keys()
    assert min(cosines.values()) >= 0.8


def test_memory_does_not_grow_with_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Twice the tokens take as much memory, but for what is kept of a row; never the rows.
    """
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 18)
    peaks = []
    for n_tokens in (2 * N_TOKENS, 4 * N_TOKENS):
        path = tmp_path / str(n_tokens)
        write(path, n_tokens, planted(N_PROBES, WIDTH))
        dataset = load_dataset(path)
        wanted = tasks(dataset, N_PROBES)
        tracemalloc.start()
        fit_streamed(dataset, wanted, max_passes=3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # Two masks and a label a probe, and a mask of all, each a byte a row.
    kept = 2 * N_TOKENS * (5 * N_PROBES + 64)
    # A quarter of the rows, and no more for twice as many but what is kept of them.
    assert peaks[1] <= 4 * N_TOKENS * WIDTH
    assert peaks[1] - peaks[0] <= kept
