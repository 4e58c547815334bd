"""Tensors of a file that torch.save wrote: a zip, its pickle read as data only."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probes.errors import ArtifactError
from probes.sae_formats.tensors import Entry, Tensors, check_size

if TYPE_CHECKING:  # Whoever reads no such file need not have it.
    import torch

# The names, shapes and offsets of a few tensors.
_MAX_PICKLE_BYTES = 4 << 20

# What torch's restricted unpickler was seen to raise on damaged files.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def open_torch(path: Path) -> Tensors:
    """
    The tensors of the ``.pt`` or ``.pth`` file at *path*, and its other values.

    Raises:
        ArtifactError: torch is not installed; no such file, too large, not a zip
            that torch.save wrote, or it holds more than tensors, numbers and text.
    """
    _check_archive(path)
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"{path}: reading it needs torch, found none: pip install torch"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        problem = " ".join(str(error).split())[:120]
        raise ArtifactError(
            f"{path}: expected tensors only, found {type(error).__name__}: {problem}"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise ArtifactError(
            f"{path}: expected a table of tensors, found {type(content).__name__}"
        )
    entries, plain = {}, {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            entries[name] = _entry(path, name, value)
        else:
            plain[name] = value
    return Tensors(path, entries, plain)


def _check_archive(path: Path) -> None:
    """Only what is stored as it is: nothing that grows when it is read."""
    size = check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ArtifactError(
            f"{path}: expected a file of torch.save (a zip), found {error}; "
            f"a bare pickle is refused"
        ) from error
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > size:
        raise ArtifactError(f"{path}: expected stored members, found packed ones")
    for member in members:
        is_pickle = member.filename.endswith(".pkl")
        if is_pickle and member.file_size > _MAX_PICKLE_BYTES:
            raise ArtifactError(
                f"{path}: {member.filename}: expected at most {_MAX_PICKLE_BYTES} "
                f"bytes, found {member.file_size}"
            )


def _entry(path: Path, name: str, tensor: "torch.Tensor") -> Entry:
    import torch

    shape = tuple(int(size) for size in tensor.shape)
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized:
        raise ArtifactError(
            f"{path}: {name}: expected a dense tensor, found {tensor.layout} "
            f"on {tensor.device}"
        )
    n_bytes = tensor.numel() * tensor.element_size()
    if n_bytes > tensor.untyped_storage().nbytes():
        raise ArtifactError(
            f"{path}: {name}: expected {tensor.untyped_storage().nbytes()} bytes of "
            f"numbers, found {shape} declared"
        )
    kind = _kind(tensor)

    def read() -> NDArray[np.generic]:
        wanted = torch.float32 if kind == "float" else torch.int64
        numbers: NDArray[np.generic] = tensor.detach().to(wanted).contiguous().numpy()
        return numbers

    return Entry(shape=shape, kind=kind, read=read)


def _kind(tensor: "torch.Tensor") -> str:
    import torch

    if tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return "float"
    if tensor.dtype in (torch.int64, torch.int32):
        return "integer"
    return f"numbers of type {tensor.dtype}"
