"""NumPy's .npy format, written row by row and opened as a memory map."""

import os
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray

from probes.errors import ArtifactError
from probes.identity import file_sha256

# Version 1.0 of the format (numpy.lib.format): magic, version, a 16-bit length, a
# dictionary padded with spaces. 128 bytes hold any shape, so the header can be
# written again when the number of rows is known.
_HEADER_BYTES = 128

_T = TypeVar("_T", bound=np.generic)


class NpyWriter:
    """Appends rows to a .npy file; the header is right only after `close`."""

    def __init__(
        self, path: Path, descr: str, width: int | None, n_rows: int = 0
    ) -> None:
        """
        Rows of *width* numbers of type *descr*; of one number if it is None.

        The first *n_rows* that are there already are kept, and all others cut away.

        Raises:
            ArtifactError: There are fewer.
        """
        self._path, self._dtype, self._width = path, np.dtype(descr), width
        self._n_rows = n_rows
        size = _HEADER_BYTES + n_rows * self._dtype.itemsize * (width or 1)
        if n_rows and (not path.is_file() or path.stat().st_size < size):
            raise ArtifactError(f"{path}: expected {n_rows} rows or more, found fewer")
        self._file: IO[bytes] = path.open("r+b" if n_rows else "wb")
        if not n_rows:
            self._file.write(self._header())
        self._file.truncate(size)
        self._file.seek(size)

    def append(self, rows: NDArray[np.generic]) -> None:
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self._n_rows += len(rows)

    def sync(self) -> None:
        """Make what was appended outlive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> str:
        """Finish the file, synced, and return its SHA-256."""
        self._file.seek(0)
        self._file.write(self._header())
        self.sync()
        self._file.close()
        return file_sha256(self._path)

    def abort(self) -> None:
        self._file.close()

    def _header(self) -> bytes:
        tail = () if self._width is None else (self._width,)
        text = repr(
            {
                "descr": self._dtype.str,
                "fortran_order": False,
                "shape": (self._n_rows, *tail),
            }
        )
        length = _HEADER_BYTES - 10
        start = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
        return start + text.encode().ljust(length - 1) + b"\n"


def open_npy(path: Path, shape: tuple[int, ...], dtype: type[_T]) -> NDArray[_T]:
    """
    The array in *path*, memory-mapped where it has rows.

    Raises:
        ArtifactError: No such file, or not an array of *shape* and *dtype*.
    """
    try:
        is_empty = 0 in shape  # an empty file region cannot be mapped
        if is_empty and path.stat().st_size > _HEADER_BYTES:
            raise ValueError("more than the header of an empty one")
        if is_empty:
            # Not by its own header: it could ask for any memory.
            return np.empty(shape, dtype)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        problem = " ".join(str(error).split())
        raise ArtifactError(f"{path}: expected an array, found {problem}") from error
    if array.shape != shape or array.dtype != dtype:
        raise ArtifactError(
            f"{path}: expected {shape} {np.dtype(dtype).name}, "
            f"found {array.shape} {array.dtype}"
        )
    result: NDArray[_T] = array
    return result
