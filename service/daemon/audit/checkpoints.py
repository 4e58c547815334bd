# C2SP signed-note and tlog-checkpoint: text that Go's sumdb tools and every witness of
# a transparency log read. <https://c2sp.org/signed-note>, <https://c2sp.org/tlog-checkpoint>
"""What the log promises at one size: a checkpoint, and the key that signs it."""

import base64
import binascii
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from service.daemon.audit.merkle import HASH_BYTES

_ED25519 = b"\x01"
_SECRET = "PRIVATE+KEY+"
_TIME = "time "


class CheckpointError(ValueError):
    """A checkpoint or a key is not what it should be. One line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """
    The *root* over the first *size* leaves of the log that is called *origin*.

    *signed_at* is seconds since the epoch, as an extension line has it.
    """

    origin: str
    size: int
    root: bytes
    signed_at: float = 0.0

    def body(self) -> str:
        """Return the text that is signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\n{_TIME}{self.signed_at!r}\n"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with a name: what *text* (C2SP's vkey) says."""

    name: str
    key: Ed25519PublicKey

    @classmethod
    def parse(cls, text: str) -> "Verifier":
        """
        Read a vkey: ``name+hash+key``.

        Raises:
            CheckpointError: It is not one.
        """
        name, _, rest = text.strip().partition("+")
        digest, _, encoded = rest.partition("+")
        data = _decoded(encoded, "public key")
        if digest != _key_hash(name, data).hex() or data[:1] != _ED25519:
            raise CheckpointError(
                f"public key: expected name+hash+key of Ed25519, got {text.strip()!r}"
            )
        return cls(name, Ed25519PublicKey.from_public_bytes(data[1:]))

    @property
    def text(self) -> str:
        """The key as a vkey."""
        data = self._data
        encoded = base64.b64encode(data).decode()
        return f"{self.name}+{_key_hash(self.name, data).hex()}+{encoded}"

    @property
    def _data(self) -> bytes:
        return _ED25519 + self.key.public_bytes_raw()

    def read(self, note: str) -> Checkpoint:
        """
        Return what a signed checkpoint says.

        Raises:
            CheckpointError: This key did not sign it, or it is none.
        """
        body, separator, signatures = note.partition("\n\n")
        key_hash = _key_hash(self.name, self._data)
        for line in signatures.splitlines() if separator else ():
            mark, _, rest = line.partition(" ")
            name, _, encoded = rest.partition(" ")
            if mark != "\N{EM DASH}" or name != self.name:
                continue
            data = _decoded(encoded, "signature")
            if data[:4] != key_hash:
                continue
            try:
                self.key.verify(data[4:], f"{body}\n".encode())
            except InvalidSignature as error:
                raise CheckpointError("checkpoint: its signature is wrong") from error
            return parse_body(body)
        raise CheckpointError(f"checkpoint: not signed by the key of {self.name}")


class Signer:
    """The private key of a log, which is called as the key is."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self._key = key
        self.verifier = Verifier(name, key.public_key())
        self._key_hash = _key_hash(name, self.verifier._data)

    @classmethod
    def open(cls, path: Path) -> "Signer":
        """
        Read the key at *path*, or make one there that its owner only can read.

        Raises:
            CheckpointError: What is there is no key.
            OSError: It cannot be read or written.
        """
        if not path.exists():
            signer = cls(
                f"innerwatch.local/audit/{secrets.token_hex(8)}",
                Ed25519PrivateKey.generate(),
            )
            write_secret(path, f"{signer._secret()}\n".encode())
            return signer
        text = path.read_text().strip()
        name, _, rest = text.removeprefix(_SECRET).partition("+")
        data = _decoded(rest.partition("+")[2], f"signing key {path}")
        if not text.startswith(_SECRET) or len(data) != 33 or data[:1] != _ED25519:
            raise CheckpointError(
                f"signing key {path}: expected {_SECRET}name+hash+key of Ed25519"
            )
        return cls(name, Ed25519PrivateKey.from_private_bytes(data[1:]))

    def _secret(self) -> str:
        encoded = base64.b64encode(_ED25519 + self._key.private_bytes_raw()).decode()
        return f"{_SECRET}{self.name}+{self._key_hash.hex()}+{encoded}"

    def sign(self, size: int, root: bytes, signed_at: float) -> str:
        """Return a signed checkpoint."""
        body = Checkpoint(
            origin=self.name, size=size, root=root, signed_at=signed_at
        ).body()
        data = self._key_hash + self._key.sign(body.encode())
        signature = base64.b64encode(data).decode()
        return f"{body}\n\N{EM DASH} {self.name} {signature}\n"


def parse_body(text: str) -> Checkpoint:
    """
    Return what a checkpoint says, whoever signed it.

    Raises:
        CheckpointError: It is none.
    """
    origin, size, encoded, *extensions = [*text.splitlines(), "", "", ""]
    root = _decoded(encoded, "checkpoint")
    if not (size.isascii() and size.isdigit()) or len(root) != HASH_BYTES:
        raise CheckpointError(f"checkpoint: expected origin, size, root, got {text!r}")
    times = [x.removeprefix(_TIME) for x in extensions if x.startswith(_TIME)]
    try:
        signed_at = float(times[0]) if times else 0.0
    except ValueError as error:
        raise CheckpointError(f"checkpoint: time: got {times[0]!r}") from error
    return Checkpoint(origin=origin, size=int(size), root=root, signed_at=signed_at)


def write_secret(path: Path, data: bytes) -> None:
    """Write *data* to a new file that its owner only can read, synced; all or none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.touch(0o600)
    with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make what was made or renamed in the folder *path* durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _key_hash(name: str, data: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + data).digest()[:4]


def _decoded(text: str, what: str) -> bytes:
    with suppress(binascii.Error, ValueError):
        data = base64.b64decode(text, validate=True)
        # Bits that no byte has are to be 0: there is one way to write a note.
        if base64.b64encode(data).decode() == text:
            return data
    raise CheckpointError(f"{what}: expected base64, got {text!r}")
