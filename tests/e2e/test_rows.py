"""Every row that passes through the layers arrives once, and is the right one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.engines import (
    HOOK_POINTS,
    ORGANISM,
    EngineRun,
    bank_arrays,
    run_engine,
)
from tests.e2e.rows import Comparison, Rows, compare, reference_activations, rows_at

pytestmark = pytest.mark.vllm

N_REQUESTS = 64


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pushdown_run(tmp_path_factory: pytest.TempPathFactory) -> EngineRun:
    return run_engine(
        tmp_path_factory.mktemp("pushdown"),
        mode="pushdown",
        enforce_eager=True,
        n_requests=N_REQUESTS,
    )


@pytest.fixture(scope="module")
def compiled_run(
    tmp_path_factory: pytest.TempPathFactory, cache_root: Path
) -> EngineRun:
    return run_engine(
        tmp_path_factory.mktemp("compiled"),
        mode="activations",
        enforce_eager=False,
        n_requests=N_REQUESTS,
        cache_root=cache_root,
    )


def sequences_of(run: EngineRun) -> dict[str, list[int]]:
    """Return the token ids that passed through the layers, by request."""
    return {r["request_id"]: run.sequence(r["request_id"]) for r in run.requests}


def compare_run(run: EngineRun, site: int) -> Comparison:
    """Compare *run* at hook point *site* with Hugging Face's model."""
    sequences = sequences_of(run)
    reference = reference_activations(
        ORGANISM, sequences, int(HOOK_POINTS[site].split(".")[1])
    )
    if run.bank is not None:
        weight, bias = bank_arrays(run.bank, site)
        reference = {k: v @ weight.T + bias for k, v in reference.items()}
    rows, n_repeated = rows_at(run.batches, HOOK_POINTS[site])
    found = compare(rows, _with_abort_slack(run, sequences, rows), reference)
    return dataclasses.replace(found, n_repeated=n_repeated)


def _with_abort_slack(
    run: EngineRun, sequences: dict[str, list[int]], rows: Rows
) -> dict[str, list[int]]:
    """
    An aborted request may have been anywhere in its prompt, or between two tokens.

    What the engine had not run yet at the abort is no error; a hole before what it
    ran is. Every other request has to be there to its last token.
    """
    aborted = {r["request_id"] for r in run.requests if r["abort_at_step"] is not None}
    return {
        name: tokens[: max(rows.get(name, {}), default=-1) + 1]
        if name in aborted
        else tokens
        for name, tokens in sequences.items()
    }


@pytest.mark.parametrize("site", [0, 1])
def test_pushdown_rows_equal_the_reference(pushdown_run: EngineRun, site: int) -> None:
    """
    Eager, chunked and with aborts: all columns are right, each position once.
    """
    found = compare_run(pushdown_run, site)

    assert (0, 0, 0) == (found.n_missing, found.n_unasked, found.n_wrong_token)
    assert found.n_repeated == 0
    assert found.n_rows > 5000
    assert found.worst < 1e-4


@pytest.mark.parametrize("site", [0, 1])
def test_compiled_activations_equal_the_reference(
    compiled_run: EngineRun, site: int
) -> None:
    """
    Under torch.compile: all activations are right, each position once.
    """
    found = compare_run(compiled_run, site)

    assert (0, 0, 0) == (found.n_missing, found.n_unasked, found.n_wrong_token)
    assert found.n_repeated == 0
    assert found.n_rows > 5000
    assert found.worst < 1e-4


def test_eager_activations_equal_the_reference(tmp_path: Path) -> None:
    """
    Whole activations of an eager engine are right, each position once.
    """
    run = run_engine(tmp_path, mode="activations", enforce_eager=True, n_requests=16)

    found = compare_run(run, 1)

    assert (0, 0, 0) == (found.n_missing, found.n_unasked, found.n_wrong_token)
    assert found.n_repeated == 0
    assert found.worst < 1e-4


def test_a_warm_compile_cache_changes_nothing(
    compiled_run: EngineRun, cache_root: Path, tmp_path: Path
) -> None:
    """
    A second start on the same cache of Inductor's is as right as the first.
    """
    run = run_engine(
        tmp_path,
        mode="activations",
        enforce_eager=False,
        n_requests=8,
        cache_root=cache_root,
    )

    found = compare_run(run, 1)

    assert (0, 0, 0) == (found.n_missing, found.n_unasked, found.n_wrong_token)
    assert found.n_repeated == 0
    assert found.worst < 1e-4


def test_finished_requests_are_reported_complete(pushdown_run: EngineRun) -> None:
    """
    Every request's end is reported once, and an unaborted one has all its rows.
    """
    finished = [i for batch in pushdown_run.batches for i in batch.finished]
    rows, _ = rows_at(pushdown_run.batches, HOOK_POINTS[0])

    assert len(finished) == len(set(finished)) == N_REQUESTS
    for request in pushdown_run.requests:
        if request["abort_at_step"] is None:
            name = request["request_id"]
            assert len(rows[name]) == len(pushdown_run.sequence(name))


def test_a_row_map_off_by_one_is_noticed(pushdown_run: EngineRun) -> None:
    """
    The comparison fails when each step's rows are given to the next row's owner.
    """
    shifted = [
        dataclasses.replace(
            batch,
            columns={h: np.roll(v, 1, axis=0) for h, v in batch.columns.items()},
        )
        for batch in pushdown_run.batches
    ]

    found = compare_run(dataclasses.replace(pushdown_run, batches=shifted), 0)

    assert found.worst > 0.1


def test_pushdown_equals_projection_in_the_sidecar(
    pushdown_run: EngineRun, compiled_run: EngineRun
) -> None:
    """
    Columns from inside the model equal the bank applied to raw activations.
    """
    assert pushdown_run.bank is not None
    worst = 0.0
    for site, hook_point in enumerate(HOOK_POINTS):
        weight, bias = bank_arrays(pushdown_run.bank, site)
        columns, _ = rows_at(pushdown_run.batches, hook_point)
        raw, _ = rows_at(compiled_run.batches, hook_point)
        for name in columns:
            shared = sorted(columns[name].keys() & raw[name].keys())
            pushed = np.stack([columns[name][p][1] for p in shared])
            expected = np.stack([raw[name][p][1] for p in shared]) @ weight.T + bias
            worst = max(worst, _relative(pushed, expected))

    assert worst < 1e-5


def _relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    scale = np.abs(expected).max(axis=1, keepdims=True)
    return float((np.abs(found - expected) / scale).max())
