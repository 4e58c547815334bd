"""Checkpoints that are damaged, lie about their size, or want to run code."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes import ArtifactError
from probes.sae_formats import FORMATS, load_sae
from tests.contract.hostile import GIVEN, Evil, assert_refused, npz
from tests.contract.sae_checkpoints import D_SAE, save_json, save_tensors
from tests.contract.sae_files import FILES, save_torch
from tests.contract.sae_folders import FOLDERS
from tests.contract.sae_saelens import SAELENS

CASES = SAELENS | FOLDERS | FILES


def raw_safetensors(path: Path, header: Any, content: bytes = b"") -> None:
    """A file with any header, truthful or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def entry(shape: list[int], n_bytes: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, n_bytes]}


BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "huge shape": (
        {"w_enc": entry([1 << 40, 1 << 40], 8)},
        r"w_enc\.shape: expected 8",
    ),
    "too many": ({"w_enc": entry([1 << 60], 8)}, r"w_enc\.shape: expected sizes"),
    "beyond the end": ({"w_enc": entry([1 << 30], 1 << 32)}, "data_offsets: expected"),
    "negative": ({"w_enc": entry([-1], 8)}, "shape: expected sizes"),
    "deep": (b"[" * 5000, "expected JSON"),
    "not JSON": (b"\xff\xfe", "expected JSON"),
    "twice": (b'{"a": {}, "a": {}}', "there twice"),
}


@pytest.mark.parametrize(("header", "match"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_lying_header_takes_no_memory(
    tmp_path: Path, header: Any, match: str
) -> None:
    """
    What a safetensors header declares is held against the file's length first.
    """
    path = tmp_path / "layer_0.safetensors"
    raw_safetensors(path, header, b"\0" * 8)

    assert_refused(path, match, **GIVEN)


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    """
    The header's own length is checked before it is read.
    """
    path = tmp_path / "layer_0.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")

    assert_refused(path, "found a header of")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a" * 201])
def test_names_are_fit_to_be_printed(tmp_path: Path, name: str) -> None:
    """
    A name that would break a log line, or fill it, is refused.
    """
    path = tmp_path / "layer_0.safetensors"
    raw_safetensors(path, {name: entry([2], 8)}, b"\0" * 8)

    assert_refused(path, "expected names of at most 200 plain characters")


def test_a_value_that_is_too_long_to_print_is_refused(tmp_path: Path) -> None:
    """
    Lists of lists of lists, shared so that they take no room, are not written out.
    """
    torch = pytest.importorskip("torch", reason="pip install torch")
    path, _ = FILES["openai-topk"].write(tmp_path / "sae")
    nested: list[Any] = []
    for _ in range(64):
        nested = [nested, nested]
    state = torch.load(path, weights_only=True)
    torch.save(state | {"activation_state_dict": nested}, path)

    assert_refused(path, "activation_state_dict: expected a table, found list", **GIVEN)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    """
    The same bytes cannot be declared often, and be taken as often.
    """
    path = tmp_path / "layer_0.safetensors"
    raw_safetensors(path, {n: entry([2], 8) for n in "abc"}, b"\0" * 8)

    assert_refused(path, "overlaps")


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "x.pt"])
def test_an_index_stays_in_its_folder(tmp_path: Path, shard: str) -> None:
    """
    A shard outside of the checkpoint's folder is not opened.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    weights = path / "sae_weights.safetensors"
    weights.rename(tmp_path / "x.safetensors")
    save_json(path / f"{weights.name}.index.json", {"weight_map": {"W_enc": shard}})

    assert_refused(path, r"weight_map\.W_enc: expected a file of this folder")


def test_shards_are_read(tmp_path: Path) -> None:
    """
    A checkpoint in shards, as an index lists them, is the same SAE.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    whole = load_sae(path)
    weights = path / "sae_weights.safetensors"
    weights.rename(path / "one.safetensors")
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    index = {"weight_map": dict.fromkeys(names, "one.safetensors")}
    save_json(path / f"{weights.name}.index.json", index)

    np.testing.assert_array_equal(whole.W_enc, load_sae(path).W_enc)


@pytest.mark.parametrize(
    ("dtype", "match"),
    [
        (np.int32, "W_enc: expected floats, found integers"),
        (np.uint8, "W_enc: expected floats, found numbers of type U8"),
    ],
)
def test_whole_numbers_are_no_weights(
    tmp_path: Path, dtype: type[np.generic], match: str
) -> None:
    """
    Weights of an integer type are refused, as some libraries do not.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    change_tensor(path, "W_enc", lambda weights: weights.astype(dtype))

    assert_refused(path, match.replace("integers", "integer"))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_are_finite(tmp_path: Path, name: str, number: float) -> None:
    """
    NaN or an infinity in any tensor is refused, naming it.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    change_tensor(path, name, lambda weights: np.where(weights > 1, number, weights))

    assert_refused(path, f"sae_weights.safetensors: {name}: expected finite numbers")


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_missing_and_transposed_tensors_are_named(tmp_path: Path, name: str) -> None:
    """
    A tensor that is absent, turned or unknown is named with what was expected.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    change_tensor(path, name, lambda weights: weights[..., None])
    assert_refused(path, f"{name}: expected")

    change_tensor(path, name, None)
    assert_refused(path, f"{name}: expected floats of shape .* found no such tensor")


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    """
    A tensor that the reader does not know may change what the others mean.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    change_tensor(path, "W_gate", lambda _: np.zeros(D_SAE, np.float32))

    assert_refused(path, "W_gate: expected no such tensor")


def change_tensor(path: Path, name: str, change: Callable[[Any], Any] | None) -> None:
    """Rewrite one tensor of a SAELens folder; None leaves it out."""
    from safetensors.numpy import load_file

    file = path / "sae_weights.safetensors"
    tensors = load_file(os.fspath(file))
    old = tensors.pop(name, None)
    if change is not None:
        tensors[name] = change(old)
    save_tensors(file, tensors)


def npy(array: Any, *, declared: str = "", allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    content = buffer.getvalue()
    if declared:
        shape = f"{array.shape}".encode()
        content = content.replace(shape, declared.encode().ljust(len(shape)), 1)
    return content


def test_an_npz_is_checked_before_it_is_read(tmp_path: Path) -> None:
    """
    Pickles, lying shapes and bombs in a .npz are refused by their headers.
    """
    path, made = tmp_path / "params.npz", tmp_path / "made"
    objects = np.array([Evil(made)], dtype=object)
    npz(path, {"W_enc.npy": npy(objects, allow_pickle=True)})
    assert_refused(path, "W_enc: expected", format="gemma_scope", **GIVEN)
    assert not made.exists()

    array = np.zeros((1000, 1000), np.float32)
    npz(path, {"W_enc.npy": npy(array, declared="(9999, 9999)")})
    assert_refused(path, "W_enc: expected .* bytes", format="gemma_scope", **GIVEN)

    npz(path, {"W_enc.npy": npy(array)}, zipfile.ZIP_DEFLATED)
    assert_refused(path, "expected at most 64 times", format="gemma_scope", **GIVEN)

    path.write_bytes(b"no zip at all")
    assert_refused(path, "expected .npz", format="gemma_scope", **GIVEN)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cut_and_flipped_files_are_one_line(tmp_path: Path, case: Any) -> None:
    """
    A file cut anywhere, or with bytes changed, is refused in one line or read.
    """
    path, _ = case.write(tmp_path / "checkpoint")
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    rng = np.random.default_rng(0)
    for file in files:
        whole = file.read_bytes()
        for _ in range(4):
            file.write_bytes(whole[: int(rng.integers(len(whole)))])
            _load_or_refuse(path, case)
            damaged = bytearray(whole)
            for position in rng.integers(min(len(whole), 600), size=4):
                damaged[position] = int(rng.integers(256))
            file.write_bytes(damaged)
            _load_or_refuse(path, case)
        file.write_bytes(whole)


HOSTILE: list[Any] = [None, True, -1, 0, 10**400, 1e300, 1e-300, "x\ny", [], {}, [[1]]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_configuration_is_read_or_one_line(tmp_path: Path, case: Any) -> None:
    """
    Whatever stands in place of a value of a configuration, it is a line or it is read.
    """
    path, _ = case.write(tmp_path / "checkpoint")
    for file in path.rglob("*.json"):
        whole = json.loads(file.read_text())
        for table in [whole, *(v for v in whole.values() if isinstance(v, dict))]:
            for key, usual in list(table.items()):
                for value in HOSTILE:
                    table[key] = value
                    save_json(file, whole)
                    _load_or_refuse(path, case)
                table[key] = usual
        save_json(file, whole)


def _load_or_refuse(path: Path, case: Any) -> None:
    problem = ""
    try:
        load_sae(path, format=case.format, **case.facts)
    except ArtifactError as error:
        problem = str(error)
    assert "\n" not in problem


def test_an_ambiguous_checkpoint_is_not_guessed(tmp_path: Path) -> None:
    """
    A folder that fits two formats is refused with both names, until one is given.
    """
    path, _ = SAELENS["standard"].write(tmp_path / "sae")
    (path / "sae.safetensors").write_bytes(b"")

    assert_refused(path, "format: fits saelens and sparsify of .*give format")
    assert "relu" == load_sae(path, format="saelens").activation
    assert_refused(path, r"format: expected one of \['innerwatch'", format="x")


@pytest.mark.parametrize("name", ["empty", "none.pt", "sae.bin", "sae.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """
    An empty folder, nothing at all, and a file of no known kind each get a line.
    """
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif name != "none.pt":
        raw_safetensors(path, {"x": entry([2], 8)}, b"\0" * 8)

    assert_refused(path, "expected|fits none")


def test_a_temporal_sae_is_refused_with_the_reason(tmp_path: Path) -> None:
    """
    An SAE that attends to earlier tokens is known, and not read.
    """
    (tmp_path / "conf.yaml").write_text("")
    raw_safetensors(tmp_path / "latest_ckpt.safetensors", {"D": entry([2], 8)})

    assert_refused(tmp_path, "is refused: a temporal SAE attends to earlier tokens")


BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


@pytest.mark.parametrize("dict_class", BATCH)
def test_a_threshold_that_was_never_set_is_refused(
    tmp_path: Path, dict_class: str
) -> None:
    """
    Without its threshold a BatchTopK SAE would fire far too often.
    """
    torch = pytest.importorskip("torch", reason="pip install torch")
    path, _ = FILES[dict_class].write(tmp_path / "sae")
    state = torch.load(path / "ae.pt", weights_only=True)
    state = {name: value.numpy() for name, value in state.items()}
    save_torch(path / "ae.pt", state | {"threshold": np.float32(-1)})

    assert_refused(path, "threshold: expected one of at least 0, found -1")


def test_every_reader_asks_for_its_file(tmp_path: Path) -> None:
    """
    A format that is named and not there gets a line from its reader.
    """
    (tmp_path / "x").mkdir()
    for name in FORMATS:
        assert_refused(tmp_path / "x", "expected", format=name, **GIVEN)
