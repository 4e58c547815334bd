"""Tensors of a NumPy .npz file: a zip of .npy files, without their pickles."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from probes.errors import ArtifactError
from probes.sae_formats.tensors import MAX_BYTES, Entry, Tensors, check_size

# Trained weights hardly shrink; what shrinks this much is not weights.
_MAX_RATIO = 64

_DAMAGED = (zipfile.BadZipFile, zlib.error)


def open_npz(path: Path) -> Tensors:
    """
    The tensors of the .npz file at *path*.

    Raises:
        ArtifactError: No such file, too large, not such an archive, a member is
            pickled, or declares more than the archive holds.
    """
    size = check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > min(MAX_BYTES, size * _MAX_RATIO):
                raise ArtifactError(
                    f"{path}: expected at most {_MAX_RATIO} times its {size} bytes, "
                    f"found {unpacked} declared"
                )
            return Tensors(
                path, dict(_entry(path, archive, member) for member in members)
            )
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: expected .npz, found {error}") from error


def _entry(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[str, Entry]:
    name = member.filename.removesuffix(".npy")
    try:
        with archive.open(member) as file:
            shape, is_fortran, dtype = _header(file)
            start = file.tell()
    except (ValueError, EOFError, RuntimeError, OSError, *_DAMAGED) as error:
        problem = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path}: {name}: expected .npy, found {problem}"
        ) from error
    n_bytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or n_bytes != member.file_size - start:
        raise ArtifactError(
            f"{path}: {name}: expected {member.file_size - start} bytes of numbers, "
            f"found {shape} {dtype}"
        )
    kinds = {"f": "float", "i": "integer", "u": "integer"}
    kind = kinds.get(dtype.kind, f"numbers of type {dtype}")

    def read() -> NDArray[np.generic]:
        try:
            with zipfile.ZipFile(path) as again, again.open(member.filename) as file:
                content = file.read()
        except (OSError, EOFError, *_DAMAGED) as error:
            raise ArtifactError(f"{path}: {name}: {error}") from error
        if len(content) != start + n_bytes:
            raise ArtifactError(f"{path}: {name}: expected {n_bytes} bytes of numbers")
        order: Literal["C", "F"] = "F" if is_fortran else "C"
        flat = np.frombuffer(content, dtype, offset=start)
        with np.errstate(over="ignore"):  # an infinity is refused as such
            wanted = np.float32 if kind == "float" else np.int64
            return np.array(np.reshape(flat, shape, order), dtype=wanted, order="C")

    return name, Entry(shape=shape, kind=kind, read=read)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether columns come first, and type, as the .npy *file* declares them."""
    version = npy_format.read_magic(file)  # type: ignore[no-untyped-call]
    of_version = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if version not in of_version:
        raise ValueError(f"version {version}")
    shape, is_fortran, dtype = of_version[version](file)  # type: ignore[no-untyped-call]
    return tuple(shape), bool(is_fortran), dtype
