"""Which detector sets there are, on disk: what a restarted daemon goes on with."""

# Rule 1: the file is replaced as a whole, synced before its name is: a daemon killed
# at any moment leaves the one before or the one after.
#
# Rule 2: it says where bundles lie and which digests they had. A bundle is read again
# and has to be the same; the file can not make the daemon watch with another.

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from probes.errors import ArtifactError
from probes.fields import json_fields

FILE_NAME = "detectors.json"
SCHEMA = 1
_MAX_BYTES = 1 << 20


class SavedSetsError(ValueError):
    """The file can not be used. One line; the daemon says so and starts without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSet:
    """Where a bundle lies, what it is called here and which one it is."""

    name: str
    path: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSets:
    """
    What a daemon watched with.

    Attributes:
        configured: Digest of the bundle that the configuration named then.

        sets: Every loaded set.

        roles: By "live", "shadow", "coming" and "previous", a set's name or "".

        banks: What engines were told to compute, the latest last: digests of sets in
            their order.
    """

    configured: str
    sets: tuple[SavedSet, ...]
    roles: Mapping[str, str]
    banks: tuple[tuple[str, ...], ...]


ROLES = ("live", "shadow", "coming", "previous")


def save_sets(directory: Path, saved: SavedSets) -> None:
    """Replace the file in *directory*; durable when this returns."""
    text = _dump(saved)
    path, unfinished = directory / FILE_NAME, directory / f".{FILE_NAME}"
    with unfinished.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_sets(directory: Path) -> SavedSets | None:
    """
    Read the file in *directory*; None if there is none.

    Raises:
        SavedSetsError: It can not be read, or was altered or cut off.
    """
    path = directory / FILE_NAME
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SavedSetsError(f"{path}: {error.strerror}") from error
    try:
        saved = _parse(path, text)
    except ArtifactError as error:
        raise SavedSetsError(str(error)) from error
    if _dump(saved) != text:
        raise SavedSetsError(f"{path}: expected what was written, found it altered")
    return saved


def _dump(saved: SavedSets) -> bytes:
    facts = asdict(saved)
    body = json.dumps(facts, indent=1, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    table = {"schema": SCHEMA, "sha256": digest, **facts}
    return json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"


def _parse(path: Path, text: bytes) -> SavedSets:
    table = json_fields(str(path), text)
    if table.integer("schema", minimum=1) != SCHEMA:
        raise SavedSetsError(f"{path}: schema: expected {SCHEMA}")
    table.text("sha256")  # Compared by the caller, with all the rest.
    roles = table.table("roles")
    return SavedSets(
        configured=table.text("configured"),
        sets=tuple(
            SavedSet(name=one.text("name"), path=one.text("path"),
                     digest=one.text("digest"))
            for one in table.tables("sets")
        ),
        roles={role: roles.text(role) for role in ROLES},
        banks=_banks(path, table.take("banks")),
    )  # fmt: skip


def _banks(path: Path, found: object) -> tuple[tuple[str, ...], ...]:
    if isinstance(found, list) and all(isinstance(bank, list) for bank in found):
        return tuple(tuple(str(digest) for digest in bank) for bank in found)
    raise SavedSetsError(f"{path}: banks: expected lists of digests, found {found!r}")
