# Rows first, then the line that says that they are there, each synced before the next:
# a line on disk has its rows, whatever was killed or switched off. What goes on after
# that keeps the whole lines and cuts everything else away.
"""Writes data sets, request by request, and goes on where it was interrupted."""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32
from probes.bundle import read_identity
from probes.dataset import (
    JSON_NAME,
    REQUESTS_NAME,
    SCHEMA,
    DatasetRequest,
    Label,
    read_requests,
)
from probes.detector import activations_at
from probes.errors import ActivationShapeError, ArtifactError
from probes.fields import dump_json, json_fields
from probes.hooks import check_hook_point
from probes.identity import (
    NORMALISATIONS,
    ModelIdentity,
    check_same_identity,
    file_sha256,
)
from probes.npy import NpyWriter

_BEGUN_NAME = "begun.json"
# An interruption costs at most so much, and a sync so often nothing.
_MAX_UNSYNCED_REQUESTS = 64
_MAX_UNSYNCED_BYTES = 64 << 20


class DatasetWriter:
    """
    Writes a data set, request by request.

    As a context manager it finishes the data set, or leaves it unfinished if an
    exception passes through. One at a time writes in a folder.
    """

    def __init__(
        self,
        path: Path,
        identity: ModelIdentity,
        hook_points: Sequence[str],
        d_model: int,
        *,
        settings: Mapping[str, Label] | None = None,
        goes_on: bool = False,
    ) -> None:
        """
        Begin the data set in the folder *path*, or go on with it.

        Args:
            path: A folder without a finished data set.

            identity: The model the activations are read from.

            hook_points: Where.

            d_model: Width of the activations.

            settings: How the requests were made; not in the finished data set.

            goes_on: Keep the requests of an unfinished data set that was begun with
                the same of all these. Otherwise it is begun anew.

        Raises:
            ArtifactError: There is a finished data set at *path*, somebody else
                writes there, or what is there was begun with something else; names
                the field.
            ValueError: A hook point is not one, or is there twice.
        """
        if (path / JSON_NAME).exists():
            raise ArtifactError(f"{path}: expected no finished data set, found one")
        for hook_point in hook_points:
            check_hook_point(hook_point)
        if not hook_points or len(set(hook_points)) < len(hook_points):
            raise ValueError(
                f"hook points: expected different ones, got {list(hook_points)}"
            )
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._d_model = path, d_model
        self._hook_points = tuple(hook_points)
        self._facts: dict[str, object] = {
            "schema": SCHEMA,
            "identity": asdict(identity),
            "normalisation": NORMALISATIONS[0],
            "hook_points": list(hook_points),
            "d_model": d_model,
        }
        self._arrays: dict[str, NpyWriter] = {}
        self._lines: list[bytes] = []
        self._n_unsynced_bytes = 0
        self._is_broken = False
        self._begun = _locked(path / _BEGUN_NAME)
        try:
            if (path / JSON_NAME).exists():  # finished while we waited
                (path / _BEGUN_NAME).unlink(missing_ok=True)
                raise ArtifactError(f"{path}: expected no finished data set, found one")
            self._open(identity, dict(settings or {}), goes_on)
        except BaseException:
            for array in self._arrays.values():
                array.abort()
            self._begun.close()
            raise

    @property
    def n_rows(self) -> int:
        return self._n_rows

    def append(
        self,
        request_id: str,
        activations: Mapping[str, Float32],
        token_ids: NDArray[np.integer],
        positions: NDArray[np.integer],
        n_prompt_tokens: int,
        labels: Mapping[str, Label],
    ) -> None:
        """
        Add one request.

        Args:
            request_id: Not yet in the data set.

            activations: By hook point, of shape (n_tokens, d_model), float32.

            token_ids: Of shape (n_tokens,).

            positions: Index in the sequence, of shape (n_tokens,).

            n_prompt_tokens: Positions below this are the prompt.

            labels: What is known about the request.

        Raises:
            ActivationShapeError: The arrays do not fit, or are not finite.
            ValueError: The request is there already. Nothing was written.
            OSError: It could not be written. Nothing more can be; what was appended
                before is kept as far as it is on disk.
        """
        if self._is_broken:
            raise OSError(f"{self._path}: an earlier request could not be written")
        if request_id in self._request_ids:
            raise ValueError(f"request {request_id!r} is in the data set already")
        arrays = self._checked(activations, token_ids, positions)
        request = DatasetRequest(
            request_id=request_id,
            first_row=self._n_rows,
            n_rows=len(token_ids),
            n_prompt_tokens=n_prompt_tokens,
            labels=dict(labels),
        )
        line = json.dumps(asdict(request), sort_keys=True, allow_nan=False)
        try:
            for name, array in arrays.items():
                self._arrays[name].append(array)
                self._n_unsynced_bytes += array.nbytes
            self._lines.append(line.encode() + b"\n")
            if (
                len(self._lines) >= _MAX_UNSYNCED_REQUESTS
                or self._n_unsynced_bytes >= _MAX_UNSYNCED_BYTES
            ):
                self._sync()
        except OSError:
            self._is_broken = True
            raise
        self._request_ids.add(request_id)
        self._n_rows += len(token_ids)

    def close(self) -> None:
        """
        Finish: from here on the folder is a data set.

        Raises:
            OSError: It could not be written, now or before: it is left unfinished.
        """
        if self._is_broken:
            raise OSError(f"{self._path}: an earlier request could not be written")
        self._sync()
        digests = {f"{name}.npy": a.close() for name, a in self._arrays.items()}
        self._requests.close()
        digests[REQUESTS_NAME] = file_sha256(self._path / REQUESTS_NAME)
        table = self._facts | {
            "n_rows": self._n_rows,
            "n_requests": len(self._request_ids),
            "files_sha256": digests,
        }
        unfinished = self._path / f"{JSON_NAME}.unfinished"
        with unfinished.open("wb") as file:
            file.write(dump_json(table))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._path / JSON_NAME)
        (self._path / _BEGUN_NAME).unlink()
        self._begun.close()

    def abort(self) -> None:
        """Close the files and leave the data set unfinished, with what it has."""
        with contextlib.suppress(OSError):
            self._sync()
        for array in self._arrays.values():
            with contextlib.suppress(OSError):
                array.abort()
        for file in (self._requests, self._begun):
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _open(
        self, identity: ModelIdentity, settings: dict[str, Label], goes_on: bool
    ) -> None:
        """Open every file, with what is kept of each."""
        requests: Sequence[DatasetRequest] = ()
        text = self._begun.read()
        # Empty: killed before it was written, and before there was anything else.
        if goes_on and text:
            where = str(self._path / _BEGUN_NAME)
            _check_same(where, text, identity, self._facts | {"settings": settings})
            requests = _whole_lines(self._path)
            size = sum(len(line) for line in _lines(self._path))
            os.truncate(self._path / REQUESTS_NAME, size)
        else:
            (self._path / REQUESTS_NAME).write_bytes(b"")
            self._begun.seek(0)
            self._begun.truncate()
            self._begun.write(dump_json(self._facts | {"settings": settings}))
            self._begun.flush()
            os.fsync(self._begun.fileno())
        self._n_rows = sum(request.n_rows for request in requests)
        self._request_ids = {request.request_id for request in requests}
        kinds: list[tuple[str, str, int | None]] = [
            *((hook_point, "<f4", self._d_model) for hook_point in self._hook_points),
            *((name, "<i4", None) for name in ("token_ids", "positions")),
        ]
        for name, descr, width in kinds:
            file = self._path / f"{name}.npy"
            self._arrays[name] = NpyWriter(file, descr, width, self._n_rows)
        self._requests = (self._path / REQUESTS_NAME).open("ab")

    def _sync(self) -> None:
        """Make what was appended outlive a power cut: rows, then their lines."""
        for array in self._arrays.values():
            array.sync()
        self._requests.write(b"".join(self._lines))
        self._requests.flush()
        os.fsync(self._requests.fileno())
        self._lines.clear()
        self._n_unsynced_bytes = 0

    def _checked(
        self,
        activations: Mapping[str, Float32],
        token_ids: NDArray[np.integer],
        positions: NDArray[np.integer],
    ) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {
            "token_ids": token_ids,
            "positions": positions,
        }
        for hook_point in self._hook_points:
            rows = activations_at(hook_point, self._d_model, activations)
            if not np.isfinite(rows).all():
                raise ActivationShapeError(f"activations at {hook_point}: not finite")
            arrays[hook_point] = rows
        if token_ids.ndim != 1 or len({len(array) for array in arrays.values()}) > 1:
            raise ActivationShapeError(
                f"expected as many rows in each array, "
                f"got { ({name: a.shape for name, a in arrays.items()}) }"
            )
        return arrays


def written_requests(path: Path) -> set[str]:
    """Ids of the requests that an unfinished data set in *path* has on disk."""
    if not (path / _BEGUN_NAME).exists() or not (path / REQUESTS_NAME).exists():
        return set()
    return {request.request_id for request in _whole_lines(path)}


def _locked(path: Path) -> IO[bytes]:
    """The file at *path*, made if need be, ours alone until it is closed."""
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ArtifactError(
            f"{path.parent}: expected nobody else to write here, found one who does"
        ) from error
    file.seek(0)
    return file


def _whole_lines(path: Path) -> Sequence[DatasetRequest]:
    """The requests in the folder *path*, but for a line that was cut short."""
    return read_requests(path / REQUESTS_NAME, _lines(path))


def _lines(path: Path) -> list[bytes]:
    lines = (path / REQUESTS_NAME).read_bytes().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _check_same(
    where: str, text: bytes, identity: ModelIdentity, facts: Mapping[str, object]
) -> None:
    """Raise `ArtifactError` at the first of *facts* in which *text* differs."""
    table = json_fields(where, text)
    check_same_identity(where, read_identity(table.table("identity")), identity)
    settings, ours = table.table("settings").data, facts["settings"]
    assert isinstance(ours, dict)
    pairs = [(key, table.take(key), facts[key]) for key in facts if key in _PLAIN]
    pairs += [
        (f"settings.{key}", settings.get(key), ours.get(key))
        for key in sorted({*settings, *ours})
    ]
    for key, begun, now in pairs:
        if begun != now:
            raise ArtifactError(f"{where}: {key}: expected {now!r}, found {begun!r}")


_PLAIN = ("schema", "normalisation", "hook_points", "d_model")
