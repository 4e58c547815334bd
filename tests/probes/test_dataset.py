"""Data sets on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

from probes import (
    ActivationShapeError,
    ArtifactError,
    DatasetWriter,
    load_dataset,
)
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    floats,
    identity,
    write_dataset,
)


def add(writer: DatasetWriter, request_id: str, n_tokens: int, seed: int = 0) -> None:
    writer.append(
        request_id,
        {HOOK_POINT: floats(n_tokens, D_MODEL, seed=seed)},
        np.arange(n_tokens),
        np.arange(n_tokens) + 100,
        n_prompt_tokens=2,
        labels={"is_bad": True, "kind": "x", "weight": 0.5},
    )


def test_round_trip(tmp_path: Path) -> None:
    """
    What was appended is what is loaded, request by request.
    """
    with DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL) as writer:
        add(writer, "a", 5, seed=1)
        add(writer, "empty", 0)
        add(writer, "b", 3, seed=2)

    dataset = load_dataset(tmp_path, is_verified=True)

    rows = dataset.activations[HOOK_POINT][dataset.rows_of(2)]
    np.testing.assert_array_equal(floats(3, D_MODEL, seed=2), rows)
    assert isinstance(dataset.activations[HOOK_POINT], np.memmap)
    assert [0, 1, 2] == dataset.token_ids[dataset.rows_of(2)].tolist()
    assert [100, 101, 102] == dataset.positions[dataset.rows_of(2)].tolist()
    assert ["a", "empty", "b"] == [r.request_id for r in dataset.requests]
    expected = {"is_bad": True, "kind": "x", "weight": 0.5}
    assert expected == dataset.requests[0].labels
    assert identity() == dataset.identity


def test_numpy_reads_the_arrays(tmp_path: Path) -> None:
    """
    The arrays are plain .npy files that anything can read.
    """
    write_dataset(tmp_path)

    array = np.load(tmp_path / f"{HOOK_POINT}.npy", allow_pickle=False)

    assert load_dataset(tmp_path).activations[HOOK_POINT].shape == array.shape


def test_same_requests_same_digest(tmp_path: Path) -> None:
    """
    Two data sets of the same requests have one digest; another has another.
    """
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_dataset(tmp_path / name, seed=seed)

    digests = [load_dataset(tmp_path / name).sha256 for name in "abc"]

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_empty_data_set(tmp_path: Path) -> None:
    """
    A data set without requests is one, and can be opened.
    """
    with DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL):
        pass

    assert () == load_dataset(tmp_path, is_verified=True).requests


def test_unfinished_is_refused_then_begun_anew(tmp_path: Path) -> None:
    """
    What an interrupted collection left is not read, and the next one replaces it.
    """

    def be_interrupted() -> None:
        with DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL) as writer:
            add(writer, "a", 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    with pytest.raises(ArtifactError, match="finished"):
        load_dataset(tmp_path)

    with DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL) as writer:
        add(writer, "b", 2)

    assert ["b"] == [r.request_id for r in load_dataset(tmp_path).requests]


def test_finished_is_not_overwritten(tmp_path: Path) -> None:
    """
    A finished data set is never begun anew.
    """
    write_dataset(tmp_path)

    with pytest.raises(ArtifactError, match="no finished data set"):
        DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL)


def test_refused_request_leaves_the_data_set_whole(tmp_path: Path) -> None:
    """
    A request that does not fit is refused, and nothing of it is written.
    """
    bad = floats(3, D_MODEL)
    bad[1, 1] = np.nan
    tokens = np.arange(3)
    with DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL) as writer:
        add(writer, "a", 5)
        with pytest.raises(ValueError, match="already"):
            add(writer, "a", 5)
        with pytest.raises(ActivationShapeError, match="finite"):
            writer.append("b", {HOOK_POINT: bad}, tokens, tokens, 1, {})
        with pytest.raises(ActivationShapeError, match="as many rows"):
            writer.append("b", {HOOK_POINT: floats(2, D_MODEL)}, tokens, tokens, 1, {})

    assert 1 == len(load_dataset(tmp_path, is_verified=True).requests)


@pytest.mark.parametrize(
    "name", [f"{HOOK_POINT}.npy", "token_ids.npy", "requests.jsonl"]
)
def test_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    """
    A file that was cut short is refused, naming it.
    """
    write_dataset(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-30])

    with pytest.raises(ArtifactError, match=name.split(".")[0]) as caught:
        load_dataset(tmp_path)

    assert "\n" not in str(caught.value)


def test_changed_number_is_found_by_verification(tmp_path: Path) -> None:
    """
    A changed activation is found when every file is read.
    """
    write_dataset(tmp_path)
    file = tmp_path / f"{HOOK_POINT}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(ArtifactError, match="sha256"):
        load_dataset(tmp_path, is_verified=True)


@pytest.mark.parametrize("name", [f"{HOOK_POINT}.npy", "requests.jsonl"])
def test_a_file_without_a_digest_is_not_verified(tmp_path: Path, name: str) -> None:
    """
    Verification demands a digest of every file, and a file for every digest.
    """
    write_dataset(tmp_path)
    data = json.loads((tmp_path / "dataset.json").read_bytes())
    digest = data["files_sha256"].pop(name)
    for changed in (
        data["files_sha256"],
        data["files_sha256"] | {name: digest, "x": 1},
    ):
        text = json.dumps(data | {"files_sha256": changed})
        (tmp_path / "dataset.json").write_text(text)

        with pytest.raises(ArtifactError, match=r"files_sha256\."):
            load_dataset(tmp_path, is_verified=True)


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    """
    A key that this version does not know is refused, not ignored.
    """
    write_dataset(tmp_path)
    data = json.loads((tmp_path / "dataset.json").read_bytes())
    (tmp_path / "dataset.json").write_text(json.dumps(data | {"more": 1}))

    with pytest.raises(ArtifactError, match="more: unknown key"):
        load_dataset(tmp_path)


def test_normalisation_is_said_and_checked(tmp_path: Path) -> None:
    """
    A data set says that nothing was normalised; one without the key was not; another
    value is refused by name.
    """
    write_dataset(tmp_path)
    file = tmp_path / "dataset.json"
    data = json.loads(file.read_bytes())

    assert "none" == data.pop("normalisation") == load_dataset(tmp_path).normalisation
    file.write_text(json.dumps(data))
    assert "none" == load_dataset(tmp_path).normalisation
    file.write_text(json.dumps(data | {"normalisation": "rms"}))
    with pytest.raises(ArtifactError, match=r"normalisation: expected one of .*'rms'"):
        load_dataset(tmp_path)
