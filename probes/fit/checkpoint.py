"""The state of a long fit on disk, so that it goes on where it was interrupted."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[Any]]
_KEY = "key"


class Checkpoint:
    """
    One file with arrays, replaced as a whole, so that it is never half written.

    A file that another fit left is not read: the key says what is being fitted.
    """

    def __init__(self, folder: Path | None, name: str, key: Iterable[bytes]) -> None:
        """
        A checkpoint named *name* in *folder*; nothing is kept where that is None.

        Args:
            folder: Made where there is none.

            name: Of the file, without its ending.

            key: All that the state depends on: data, labels, options.
        """
        self._path = None if folder is None else folder / f"{name}.npz"
        digest = hashlib.sha256()
        for part in key:
            digest.update(len(part).to_bytes(8, "little") + part)
        self._key = np.frombuffer(digest.digest(), dtype=np.uint8)

    def load(self) -> State | None:
        """What was saved last for this key, or None."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            with self._path.open("rb") as raw, np.load(raw) as file:
                if not np.array_equal(file[_KEY], self._key):
                    return None
                return {name: file[name] for name in file.files if name != _KEY}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None  # Not one of ours, or damaged: the fit begins anew.

    def save(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace what was saved."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_KEY: self._key}, **state)
        unfinished.replace(self._path)

    def clear(self) -> None:
        """Forget it: the fit is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
