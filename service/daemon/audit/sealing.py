# Every sealed record has a key of its own, in a slot of a file beside the database:
# zeroing a slot in place destroys the record, and no journal or freed page of the
# database ever held the key. A slot is used once, so the nonce may be constant.
#
# Keys are synced before the transaction whose records they seal is committed: a record
# without its key cannot be. A key without its record is harmless once the journal has
# been emptied: see `AuditStore`.
"""Seals what is kept of a request's tokens, each record with a key of its own."""

import os
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.daemon.audit.checkpoints import sync_folder

FILE_NAME = "audit.keys"
KEY_BYTES = 32
NO_SLOT = -1
_NONCE = bytes(12)
_ERASED = bytes(KEY_BYTES)
_N_RANDOM = 64
_LENGTHS = struct.Struct("<HI")


class UnsealError(ValueError):
    """A key does not open its record: one of the two was altered."""


class Sealed(NamedTuple):
    """A sealed record and the slot of its key; `NO_SLOT` and b"" if it is empty."""

    slot: int
    payload: bytes


class KeyFile:
    """The keys of a record, a slot each. One writer; any number of readers."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        size = os.fstat(handle).st_size
        # What a torn write left of a slot is of no record: it was not synced.
        self._n_slots = -(-size // KEY_BYTES)
        self._new: list[bytes] = []
        self._random: list[bytes] = []

    @classmethod
    def open(cls, directory: Path, *, is_writer: bool = True) -> Self:
        """
        Open the keys in *directory*; a writer makes the file.

        Raises:
            OSError: It cannot be read or written.
        """
        path = directory / FILE_NAME
        if not is_writer:
            return cls(os.open(path, os.O_RDONLY))
        is_new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if is_new:
            sync_folder(directory)
        return cls(handle)

    @property
    def n_slots(self) -> int:
        """How many slots are taken."""
        return self._n_slots + len(self._new)

    def seal(self, parts: Mapping[str, bytes]) -> Sealed:
        """Seal *parts* with a new key, which `sync` makes durable."""
        if not parts:
            return Sealed(slot=NO_SLOT, payload=b"")
        key = self._random_key()
        slot = self._n_slots + len(self._new)
        self._new.append(key)
        return Sealed(slot, AESGCM(key).encrypt(_NONCE, pack(parts), None))

    def sync(self) -> None:
        """Make every key that was made durable."""
        if self._new:
            data = b"".join(self._new)
            self._write(data, self._n_slots * KEY_BYTES)
            self._sync()
            self._n_slots += len(self._new)
            self._new.clear()

    def unseal(self, slot: int, payload: bytes) -> dict[str, bytes] | None:
        """
        Return what was sealed; None if its key was destroyed.

        Raises:
            UnsealError: The key is not the one it was sealed with, or is not there.
        """
        if slot == NO_SLOT:
            return {}
        key = os.pread(self._handle, KEY_BYTES, slot * KEY_BYTES)
        if key == _ERASED:
            return None
        if len(key) != KEY_BYTES:
            raise UnsealError(f"key {slot}: expected one, found none")
        try:
            return unpack(AESGCM(key).decrypt(_NONCE, payload, None))
        except InvalidTag as error:
            raise UnsealError(f"key {slot}: does not open its record") from error

    def destroy(self, slots: Iterable[int]) -> None:
        """Overwrite keys where they are; durable when this returns."""
        for slot in slots:
            if 0 <= slot < self._n_slots:
                self._write(_ERASED, slot * KEY_BYTES)
        self._sync()

    def close(self) -> None:
        """Release the file."""
        os.close(self._handle)

    def _random_key(self) -> bytes:
        if not self._random:
            data = os.urandom(KEY_BYTES * _N_RANDOM)  # A system call for each is slow.
            starts = range(0, len(data), KEY_BYTES)
            self._random = [data[i : i + KEY_BYTES] for i in starts]
        return self._random.pop()

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            n = os.pwrite(self._handle, data, offset)
            data, offset = data[n:], offset + n

    def _sync(self) -> None:
        os.fdatasync(self._handle)


def pack(parts: Mapping[str, bytes]) -> bytes:
    """Return named byte strings as one."""
    return b"".join([_head(name, len(data)) + data for name, data in parts.items()])


@lru_cache(maxsize=1024)  # Few names, and few lengths of most.
def _head(name: str, n_data: int) -> bytes:
    raw = name.encode()
    return _LENGTHS.pack(len(raw), n_data) + raw


def unpack(data: bytes) -> dict[str, bytes]:
    """
    Return what `pack` was given.

    >>> unpack(pack({"token_ids": b"ids", "scores": b""}))
    {'token_ids': b'ids', 'scores': b''}
    """
    parts: dict[str, bytes] = {}
    start = 0
    while start < len(data):
        n_name, n_data = _LENGTHS.unpack_from(data, start)
        middle = start + _LENGTHS.size + n_name
        name = data[start + _LENGTHS.size : middle].decode()
        start = middle + n_data
        parts[name] = data[middle:start]
    return parts
