# A checkpoint comes from the internet. Before memory is taken for a tensor, what its
# file declares is held against how long the file is; nothing in it is executed.
"""The tensors of a file by name, read one at a time, whatever the container."""

import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32
from probes.errors import ArtifactError
from probes.fields import Fields, json_fields

# d_model 8192 with 131072 features in float32 is 8 GiB for encoder and decoder.
MAX_BYTES = 16 << 30
_MAX_JSON_BYTES = 16 << 20
_MAX_NAME = 200

Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    A tensor that is not read yet.

    Attributes:
        shape: As its file declares it; the file is long enough for it.

        kind: ``"float"``, ``"integer"``, or another word for what it holds.

        read: Its numbers, float32 or int64, of *shape*.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], NDArray[np.generic]]


class Tensors:
    """Takes tensors out of one file; what is missing, odd or left over is an error."""

    def __init__(
        self,
        file: Path,
        entries: Mapping[str, Entry],
        plain: Mapping[str, object] | None = None,
    ) -> None:
        """*plain* is what a file of torch holds beside its tensors."""
        for name in [*entries, *(plain or ())]:
            # Messages quote it.
            if not name.isprintable() or len(name) > _MAX_NAME:
                raise ArtifactError(
                    f"{file}: expected names of at most {_MAX_NAME} plain characters, "
                    f"found {ascii(name)[:80]}"
                )
        self.file = file
        self.plain = dict(plain or {})
        self._entries = dict(entries)
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._entries)

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raise `ArtifactError`: file, *name* and *problem*, in one line."""
        raise ArtifactError(f"{self.file}: {name}: {' '.join(problem.split())}")

    def shape(self, name: str, n_dims: int) -> tuple[int, ...]:
        """The declared shape of *name*, of *n_dims* sizes above 0."""
        shape = self._entry(name, f"a tensor of {n_dims} dimensions").shape
        if len(shape) != n_dims or 0 in shape:
            self.fail(name, f"expected {n_dims} dimensions above 0, found {shape}")
        return shape

    def declared(self, name: str) -> tuple[int, ...]:
        """The shape of *name* as its file declares it."""
        return self._entry(name, "a tensor").shape

    def floats(self, name: str, shape: Shape) -> Float32:
        """
        The tensor *name* as float32.

        Args:
            name: Its key.

            shape: What it must be; a word is a size that may be anything.

        Raises:
            ArtifactError: Missing, of another shape, not of a floating-point type,
                or not finite.
        """
        numbers = self._read(name, shape, "float").astype(np.float32, copy=False)
        if not is_finite(numbers):
            self.fail(name, "expected finite numbers, found others")
        return numbers

    def integers(self, name: str, shape: Shape) -> list[int]:
        """The tensor *name* of integers, flattened."""
        return [int(n) for n in self._read(name, shape, "integer").ravel().tolist()]

    def close(self, ignored: Collection[str] = ()) -> None:
        """
        Raise `ArtifactError` if a tensor, or a value beside them, was not taken.

        A tensor that a reader does not know may change what the others mean.

        Args:
            ignored: Names that may be there, with ``*`` for anything.
        """
        for name in sorted((self._entries.keys() | self.plain.keys()) - self._taken):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored):
                what = "tensor" if name in self._entries else "value"
                self.fail(name, f"expected no such {what}, found one")

    def _read(self, name: str, shape: Shape, kind: str) -> NDArray[np.generic]:
        sizes = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        entry = self._entry(name, f"{kind}s of shape {sizes}")
        fits = len(shape) == len(entry.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(shape, entry.shape, strict=True)
        )
        if not fits:
            turned = " (transposed?)" if entry.shape[::-1] == shape else ""
            self.fail(name, f"expected {sizes}, found {entry.shape}{turned}")
        if entry.kind != kind:
            self.fail(name, f"expected {kind}s, found {entry.kind}")
        self._taken.add(name)
        return entry.read()

    def _entry(self, name: str, expected: str) -> Entry:
        if name not in self._entries:
            self.fail(name, f"expected {expected}, found no such tensor")
        return self._entries[name]


def is_finite(numbers: NDArray[np.floating]) -> bool:
    """Whether all *numbers* are; without a mask as large as they are."""
    if numbers.size == 0:
        return True
    # NaN wins both, so two reductions see everything.
    return bool(np.isfinite(numbers.min()) and np.isfinite(numbers.max()))


def check_size(path: Path) -> int:
    """The size of the file at *path* in bytes; raise unless there is one to read."""
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a file, found none")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ArtifactError(f"{path}: expected at most {MAX_BYTES} bytes, found {size}")
    return size


def read_json(path: Path) -> Fields:
    """The JSON object in the file at *path*."""
    size = check_size(path)
    if size > _MAX_JSON_BYTES:
        raise ArtifactError(
            f"{path}: expected at most {_MAX_JSON_BYTES} bytes, found {size}"
        )
    return json_fields(str(path), path.read_bytes())
