# Layout: https://huggingface.co/docs/safetensors, "Format": a length of 8 bytes, a JSON
# header, the tensors. The header is read here and not by the library, which loads the
# whole file before it says what is in it.
"""Tensors of a safetensors file, whole or in shards."""

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.errors import ArtifactError
from probes.fields import Fields, json_fields
from probes.sae_formats.tensors import Entry, Tensors, check_size, read_json

_MAX_HEADER_BYTES = 16 << 20

# Type in the file, what it is, how NumPy calls it. bfloat16 is read as its bits.
_TYPES = {
    "F64": ("float", "<f8"),
    "F32": ("float", "<f4"),
    "F16": ("float", "<f2"),
    "BF16": ("float", "<u2"),
    "I64": ("integer", "<i8"),
    "I32": ("integer", "<i4"),
}


def open_safetensors(path: Path) -> Tensors:
    """
    The tensors of *path*, or of the shards that ``<path>.index.json`` lists.

    Raises:
        ArtifactError: No such file, too large, not safetensors, or its header
            declares more than the file holds; an index leads out of its folder.
    """
    index_path = path.with_name(f"{path.name}.index.json")
    if path.is_file() or not index_path.is_file():
        return Tensors(path, _entries(path))
    entries: dict[str, Entry] = {}
    for name, shard in sorted(_shards(index_path).items()):
        found = _entries(shard)
        if name not in found:
            raise ArtifactError(f"{shard}: {name}: expected a tensor, found none")
        entries[name] = found[name]
    return Tensors(index_path, entries)


def _shards(index_path: Path) -> dict[str, Path]:
    """Which shard each tensor is in; a shard is a plain name in the same folder."""
    weight_map = read_json(index_path).table("weight_map")
    shards = {}
    for name in list(weight_map.data):
        shard = weight_map.text(name)
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            weight_map.fail(name, f"expected a file of this folder, found {shard!r}")
        shards[name] = index_path.with_name(shard)
    return shards


def _entries(path: Path) -> dict[str, Entry]:
    size = check_size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ArtifactError(
                f"{path}: expected safetensors, found a header of {length} bytes "
                f"in a file of {size}"
            )
        header = json_fields(str(path), file.read(length))
    header.data.pop("__metadata__", None)
    start, n_left = 8 + length, size - 8 - length
    entries = {}
    for name in list(header.data):
        table = header.table(name)
        entries[name], n_bytes = _entry(path, table, start, size)
        n_left -= n_bytes
        if n_left < 0:
            table.fail("data_offsets", "expected each byte once, found overlaps")
    return entries


def _entry(path: Path, table: Fields, start: int, size: int) -> tuple[Entry, int]:
    dtype = table.text("dtype")
    shape = _integers(table, "shape")
    offsets = _integers(table, "data_offsets")
    table.close()
    kind, numpy_dtype = _TYPES.get(dtype, (f"numbers of type {dtype}", "<u1"))
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - start:
        table.fail(
            "data_offsets", f"expected two within {size - start}, found {offsets}"
        )
    n_bytes = offsets[1] - offsets[0]
    if dtype in _TYPES and math.prod(shape) * int(numpy_dtype[2]) != n_bytes:
        table.fail("shape", f"expected {n_bytes} bytes of {dtype}, found {shape}")

    def read() -> NDArray[np.generic]:
        numbers = np.fromfile(
            path, numpy_dtype, math.prod(shape), offset=start + offsets[0]
        ).reshape(shape)
        if dtype == "BF16":
            # The upper half of a float32; NumPy has no such type.
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # an infinity is refused as such
            return numbers.astype(np.float32 if kind == "float" else np.int64)

    return Entry(shape=tuple(shape), kind=kind, read=read), n_bytes


def _integers(table: Fields, key: str) -> list[int]:
    numbers = table.items(key)
    # More than 8 dimensions or 2^53 numbers are nobody's tensor.
    if len(numbers) > 8 or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 53
        for n in numbers
    ):
        table.fail(key, f"expected sizes, found {json.dumps(numbers)[:100]}")
    return [n for n in numbers if isinstance(n, int)]
