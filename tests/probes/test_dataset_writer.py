"""A data set that is interrupted while it is written, and goes on."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes import DatasetWriter, load_dataset
from probes.dataset_writer import written_requests
from probes.errors import ArtifactError
from tests.probes.builders import D_MODEL, HOOK_POINT, LATER_HOOK_POINT, identity

POINTS = [HOOK_POINT, LATER_HOOK_POINT]
ROOT = Path(__file__).resolve().parents[2]
# Says which requests are in, and is killed in the middle of some write.
ENDLESS = """
import itertools, sys
from pathlib import Path
from tests.probes.test_dataset_writer import add, writer
path, first = Path(sys.argv[1]), int(sys.argv[2])
to = writer(path, goes_on=True)
for index in itertools.count(first):
    add(to, index)
    print(index, flush=True)
"""


def writer(path: Path, **changes: Any) -> DatasetWriter:
    """One that goes on, unless said."""
    given: dict[str, Any] = {
        "identity": identity(),
        "hook_points": POINTS,
        "d_model": D_MODEL,
        "settings": {"max_tokens": 8},
        "goes_on": True,
    }
    return DatasetWriter(path, **(given | changes))


def add(to: DatasetWriter, index: int) -> None:
    """Add a request whose rows say which one it is."""
    n_tokens = 1 + index % 7
    rows = np.full((n_tokens, D_MODEL), index, dtype=np.float32)
    tokens = np.full(n_tokens, index, dtype=np.int32)
    to.append(
        f"r{index}",
        {HOOK_POINT: rows, LATER_HOOK_POINT: -rows},
        tokens,
        np.arange(n_tokens),
        1,
        {"index": index},
    )


def add_all(to: DatasetWriter, indices: range) -> None:
    """Add a request for each of *indices*."""
    for index in indices:
        add(to, index)


def assert_whole(path: Path) -> list[str]:
    """Every request's rows are its own; returns their ids."""
    dataset = load_dataset(path, is_verified=True)
    for place, request in enumerate(dataset.requests):
        index, rows = int(request.request_id[1:]), dataset.rows_of(place)
        assert 1 + index % 7 == request.n_rows
        assert {index} == set(dataset.token_ids[rows].tolist())
        assert (dataset.activations[HOOK_POINT][rows] == index).all()
        assert (dataset.activations[LATER_HOOK_POINT][rows] == -index).all()
    return [request.request_id for request in dataset.requests]


def test_a_killed_writer_goes_on(tmp_path: Path) -> None:
    """
    Killed in the middle of writing, again and again, it loses no whole request.
    """
    path, n_kept = tmp_path / "set", 0
    for delay in (0.0, 0.01, 0.03, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(path), str(n_kept)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for _ in range(100):  # one sync at least
                process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
            os.kill(process.pid, signal.SIGKILL)
            n_said = 100 + len(process.stdout.read().splitlines())
        found = written_requests(path)
        assert {f"r{i}" for i in range(len(found))} == found
        assert n_kept + n_said - 64 <= len(found) <= n_kept + n_said + 1
        n_kept = len(found)

    with writer(path) as last:
        add(last, n_kept)

    assert [f"r{i}" for i in range(n_kept + 1)] == assert_whole(path)


def torn_line(path: Path) -> None:
    with (path / "requests.jsonl").open("ab") as file:
        file.write(b'{"first_row": 9, "lab')


def rows_without_a_line(path: Path) -> None:
    for name in (HOOK_POINT, "token_ids"):
        with (path / f"{name}.npy").open("ab") as file:
            file.write(b"\x07" * 333)


@pytest.mark.parametrize("spoil", [torn_line, rows_without_a_line])
def test_what_was_cut_short_is_cut_away(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """
    Half a line, and rows that no line tells of, are not in the data set.
    """
    first = writer(tmp_path)
    add_all(first, range(5))
    first.abort()
    spoil(tmp_path)

    with writer(tmp_path) as second:
        add(second, 5)

    assert [f"r{i}" for i in range(6)] == assert_whole(tmp_path)
    assert not (tmp_path / "begun.json").exists()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """
    Whoever asks what is written does not cut a line that is being written.
    """
    first = writer(tmp_path)
    add_all(first, range(3))
    first.abort()
    torn_line(tmp_path)
    before = (tmp_path / "requests.jsonl").read_bytes()

    assert {"r0", "r1", "r2"} == written_requests(tmp_path)
    assert before == (tmp_path / "requests.jsonl").read_bytes()


def test_what_was_finished_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A data set that another finishes between a look and the lock is not emptied.
    """
    import probes.dataset_writer as module

    other = writer(tmp_path)
    add(other, 0)
    usual = module._locked

    def finished_first(path: Path) -> Any:
        other.close()
        return usual(path)

    monkeypatch.setattr(module, "_locked", finished_first)
    with pytest.raises(ArtifactError, match="no finished data set"):
        writer(tmp_path, goes_on=False)

    assert ["r0"] == assert_whole(tmp_path)


def test_in_two_parts_it_is_the_same_data_set(tmp_path: Path) -> None:
    """
    To the byte.
    """
    with writer(tmp_path / "once") as to:
        add_all(to, range(9))
    for part in (range(4), range(4, 9)):
        to = writer(tmp_path / "twice")
        add_all(to, part)
        to.abort() if part.stop == 4 else to.close()

    once, twice = (load_dataset(tmp_path / name) for name in ("once", "twice"))
    assert once.sha256 == twice.sha256


def test_rows_that_are_missing_are_refused(tmp_path: Path) -> None:
    """
    Where an array is shorter than its requests, the file is named.
    """
    first = writer(tmp_path)
    add(first, 3)
    first.abort()
    os.truncate(tmp_path / f"{LATER_HOOK_POINT}.npy", 200)

    with pytest.raises(ArtifactError, match=rf"{LATER_HOOK_POINT}.npy: expected 4 row"):
        writer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"identity": identity(weights_sha256="0")}, r"identity\.weights_sha256"),
        ({"hook_points": [HOOK_POINT]}, r"begun\.json: hook_points: expected \["),
        ({"settings": {"max_tokens": 9}}, r"settings\.max_tokens: expected 9, found 8"),
        ({"settings": {}}, r"settings\.max_tokens: expected None, found 8"),
    ],
)
def test_another_collection_does_not_go_on(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    """
    What differs is named, and what is there stays there, unless it is begun anew.
    """
    first = writer(tmp_path)
    add(first, 0)
    first.abort()

    with pytest.raises(ArtifactError, match=match):
        writer(tmp_path, **changes)

    assert {"r0"} == written_requests(tmp_path)
    writer(tmp_path, **changes, goes_on=False).close()
    assert () == load_dataset(tmp_path).requests


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    """
    The second is told, and the first goes on.
    """
    with writer(tmp_path) as first:
        add(first, 0)
        for goes_on in (True, False):
            with pytest.raises(ArtifactError, match="nobody else to write here"):
                writer(tmp_path, goes_on=goes_on)
        add(first, 1)

    assert ["r0", "r1"] == assert_whole(tmp_path)


def test_a_full_disk_costs_the_last_requests_only(tmp_path: Path) -> None:
    """
    A write that fails ends the writer; with room again, it goes on.
    """
    full = writer(tmp_path)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
    try:
        with pytest.raises(OSError, match="large"):
            add_all(full, range(10_000))
        with pytest.raises(OSError, match="earlier request"):
            add(full, 10_001)
        with pytest.raises(OSError, match="earlier request"):
            full.close()
        full.abort()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    n_kept = len(written_requests(tmp_path))
    assert n_kept >= 64

    with writer(tmp_path) as again:
        add_all(again, range(n_kept, n_kept + 70))

    assert [f"r{i}" for i in range(n_kept + 70)] == assert_whole(tmp_path)
