"""Floating-point tensors of a safetensors file, as float32."""

from pathlib import Path

import numpy as np
import safetensors

from probes.arrays import Float32
from probes.errors import ArtifactError

# d_model 8192 with 131072 features in float32 is 8 GiB for encoder and decoder.
_MAX_BYTES = 16 << 30

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def read_tensors(path: Path) -> dict[str, Float32]:
    """
    Every tensor in the file at *path*, by name.

    Raises:
        ArtifactError: No such file, too large, not safetensors, or a tensor is not
            of a floating-point type.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a file, found none")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ArtifactError(
            f"{path}: expected at most {_MAX_BYTES} bytes, found {size}"
        )
    try:
        entries = safetensors.deserialize(  # type: ignore[no-untyped-call]
            path.read_bytes()
        )
    except safetensors.SafetensorError as error:
        problem = " ".join(str(error).split())
        raise ArtifactError(f"{path}: expected safetensors, found {problem}") from error
    return {name: _as_float32(f"{path}: {name}", entry) for name, entry in entries}


def _as_float32(where: str, entry: dict[str, object]) -> Float32:
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    assert isinstance(shape, list)
    assert isinstance(data, bytes | bytearray)
    if dtype == "BF16":
        # The upper half of a float32; NumPy has no such type.
        upper = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        return upper.view(np.float32).reshape(shape)
    if dtype not in _DTYPES:
        raise ArtifactError(f"{where}: expected a floating-point type, found {dtype}")
    numbers = np.frombuffer(data, dtype=_DTYPES[str(dtype)])
    return numbers.astype(np.float32).reshape(shape)
