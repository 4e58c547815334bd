# A data set is a folder:
#
#     dataset.json            what it is; written last, so a folder without one is
#                             unfinished and is not read
#     begun.json              of an unfinished one: what it was begun with
#     requests.jsonl          one line a request, in row order
#     token_ids.npy           int32 (n_rows,)
#     positions.npy           int32 (n_rows,), index in the sequence from 0
#     <hook_point>.npy        float32 (n_rows, d_model)
#
# Rows are appended as they come, so a data set may be larger than memory.
"""Activations with labels on disk: written by collection, read by fitting."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32
from probes.bundle import read_identity, read_normalisation
from probes.errors import ArtifactError
from probes.fields import Fields, json_fields
from probes.hooks import check_hook_point
from probes.identity import NORMALISATIONS, ModelIdentity, file_sha256
from probes.npy import open_npy

SCHEMA = 1
Label = str | bool | float
JSON_NAME = "dataset.json"
REQUESTS_NAME = "requests.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """
    One request of a data set.

    Attributes:
        request_id: Unique in the data set.

        first_row: Its first row in the arrays.

        n_rows: How many rows it has.

        n_prompt_tokens: Positions below this are the prompt.

        labels: What is known about it, by label.
    """

    request_id: str
    first_row: int
    n_rows: int
    n_prompt_tokens: int
    labels: dict[str, Label]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """
    A data set, opened: the arrays are memory maps.

    Attributes:
        path: Its folder.

        identity: The model the activations were read from.

        normalisation: One of `probes.identity.NORMALISATIONS`.

        activations: By hook point, of shape (n_rows, d_model), float32.

        token_ids: Of shape (n_rows,), int32.

        positions: Index in the sequence, of shape (n_rows,), int32.

        requests: In row order.

        sha256: Of dataset.json, which holds the digests of everything else.
    """

    path: Path
    identity: ModelIdentity
    normalisation: str
    activations: dict[str, Float32]
    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    requests: tuple[DatasetRequest, ...]
    sha256: str

    def rows_of(self, index: int) -> slice:
        """The rows of request *index*."""
        request = self.requests[index]
        return slice(request.first_row, request.first_row + request.n_rows)


def load_dataset(path: Path, *, is_verified: bool = False) -> Dataset:
    """
    Open the data set in the folder *path*; activations stay on disk.

    Args:
        path: A folder that `probes.dataset_writer.DatasetWriter` finished.

        is_verified: Read every file and check its digest, too.

    Raises:
        ArtifactError: Unfinished, or a file is missing, altered or does not fit.
    """
    json_path = path / JSON_NAME
    if not json_path.is_file():
        raise ArtifactError(f"{json_path}: expected a finished data set, found none")
    text = json_path.read_bytes()
    table = json_fields(str(json_path), text)
    if table.take("schema") != SCHEMA:
        table.fail("schema", f"expected {SCHEMA}")
    identity = read_identity(table.table("identity"))
    # Those that were written before they said so were not normalised either.
    normalisation = read_normalisation(table, NORMALISATIONS[0])
    d_model, n_rows = table.integer("d_model", minimum=1), table.integer("n_rows")
    hook_points = _read_hook_points(table)
    requests = read_requests(path / REQUESTS_NAME)
    if len(requests) != table.integer("n_requests") or _n_rows_in(requests) != n_rows:
        table.fail("n_requests", f"does not fit {REQUESTS_NAME}")
    digests = table.table("files_sha256")
    table.close()
    if is_verified:
        arrays = [f"{name}.npy" for name in (*hook_points, "token_ids", "positions")]
        _verify(path, digests, [*arrays, REQUESTS_NAME])
    return Dataset(
        path=path,
        identity=identity,
        normalisation=normalisation,
        activations={
            h: open_npy(path / f"{h}.npy", (n_rows, d_model), np.float32)
            for h in hook_points
        },
        token_ids=open_npy(path / "token_ids.npy", (n_rows,), np.int32),
        positions=open_npy(path / "positions.npy", (n_rows,), np.int32),
        requests=requests,
        sha256=hashlib.sha256(text).hexdigest(),
    )


def _read_hook_points(table: Fields) -> list[str]:
    hook_points = [str(item) for item in table.items("hook_points")]
    for hook_point in hook_points:
        try:
            check_hook_point(hook_point)
        except ValueError as error:
            table.fail("hook_points", str(error))
    return hook_points


def read_requests(
    path: Path, lines: Iterable[bytes] | None = None
) -> tuple[DatasetRequest, ...]:
    """
    The requests that the file *path* lists, or some *lines* of it.

    Raises:
        ArtifactError: A line is not one, or does not follow on the one before.
    """
    if lines is None:
        if not path.is_file():
            raise ArtifactError(f"{path}: expected a file, found none")
        with path.open("rb") as file:
            return read_requests(path, file)
    requests: list[DatasetRequest] = []
    next_row = 0
    for number, line in enumerate(lines, start=1):
        request = _read_request(json_fields(f"{path}:{number}", line))
        if request.first_row != next_row:
            raise ArtifactError(
                f"{path}:{number}: first_row: expected {next_row}, "
                f"found {request.first_row}"
            )
        next_row += request.n_rows
        requests.append(request)
    return tuple(requests)


def _read_request(table: Fields) -> DatasetRequest:
    labels = table.table("labels")
    request = DatasetRequest(
        request_id=table.text("request_id"),
        first_row=table.integer("first_row"),
        n_rows=table.integer("n_rows"),
        n_prompt_tokens=table.integer("n_prompt_tokens"),
        labels={key: _read_label(labels, key) for key in sorted(labels.data)},
    )
    table.close()
    return request


def _read_label(labels: Fields, key: str) -> Label:
    value = labels.take(key)
    if not isinstance(value, str | bool | int | float):
        labels.fail(key, f"expected a string, truth value or number, found {value!r}")
    return value


def _n_rows_in(requests: Sequence[DatasetRequest]) -> int:
    return sum(request.n_rows for request in requests)


def _verify(path: Path, digests: Fields, names: Sequence[str]) -> None:
    for name in names:
        expected, file = digests.text(name), path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: expected a file, found none")
        found = file_sha256(file)
        if expected != found:
            raise ArtifactError(f"{file}: sha256: expected {expected}, found {found}")
    digests.close()
