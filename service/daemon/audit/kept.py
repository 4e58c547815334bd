"""What is kept of a request's tokens, as a setting says."""

import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monitor.records import Flag
from probes.contributions import Contribution
from service.daemon.audit.checkpoints import write_secret
from service.daemon.token_texts import TokenTexts

KEEP = ("nothing", "hash", "token_ids", "text")
"""What may be kept of a flagged request's tokens; its scores are, in any case."""

_FLOAT, _INTEGER = np.dtype("<f4"), np.dtype("<i4")
_SCORES = "scores:"
_CONTRIBUTIONS = "contributions:"
_CONTRIBUTION = struct.Struct("<dfH")  # Value, share, length of the name behind them.
_HASH_KEY_BYTES = 32

Parts = dict[str, bytes]
Decode = Callable[[list[int]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """
    What was kept of a request, opened.

    Attributes:
        scores: By detector: evidence a token, little-endian float32.

        contributions: By detector that flagged it: what its parts said of the flag's
            token, the largest first.

        token_ids: Little-endian int32; empty if they are not kept, or erased.

        digest: Keyed hash of the token ids, as hex; "" if it is not kept, or erased.

        text: The text of each token; empty if it is not kept, or erased.

        is_erased: Whether a key was destroyed.
    """

    scores: Mapping[str, bytes] = field(default_factory=dict)
    contributions: Mapping[str, tuple[Contribution, ...]] = field(default_factory=dict)
    token_ids: bytes = b""
    digest: str = ""
    text: tuple[str, ...] = ()
    is_erased: bool = False


class Keeper:
    """
    Decides what is kept.

    Args:
        keep: One of `KEEP`.

        hash_key: Of the keyed hash. A plain one of a short prompt can be guessed.

        decode: Token ids to the text of each; needed for "text" only.
    """

    def __init__(
        self,
        keep: str,
        hash_key: bytes,
        decode: Decode | None = None,
    ) -> None:
        if keep not in KEEP:
            raise ValueError(f"keep: expected one of {KEEP}, got {keep!r}")
        if keep == "text" and decode is None:
            raise ValueError('keep: expected a tokenizer for "text", got none')
        self._keep = keep
        self._hash_key = hash_key
        self._decode = decode

    def parts_of(self, flag: Flag) -> Parts:
        """Return what is kept of a flag: what was seen of its request until then."""
        parts = self.parts({flag.detector: flag.scores}, flag.token_ids)
        if flag.contributions:
            packed = _pack(flag.contributions)
            parts[f"{_CONTRIBUTIONS}{flag.detector}"] = packed
        return parts

    def parts(
        self, scores: Mapping[str, NDArray[np.float32]], token_ids: NDArray[np.int32]
    ) -> Parts:
        """Return what is kept of a request with these *token_ids* and *scores*."""
        parts = {
            f"{_SCORES}{name}": np.asarray(values, dtype=_FLOAT).tobytes()
            for name, values in scores.items()
        }
        if self._keep == "nothing" or not len(token_ids):
            return parts
        raw = np.asarray(token_ids, dtype=_INTEGER).tobytes()
        if self._keep == "hash":
            parts |= self.hashed(hashlib.sha256(raw).digest())
            return parts
        parts["token_ids"] = raw
        if self._decode is not None and self._keep == "text":
            parts["text"] = json.dumps(self._decode(token_ids.tolist())).encode()
        return parts

    def hashed(self, sha256: bytes) -> Parts:
        """Return what is kept as the hash of token ids with that SHA-256."""
        return {"hash": hmac.digest(self._hash_key, sha256, "sha256")}

    def migrated(
        self, scores: Mapping[str, bytes], token_ids: bytes, sha256: str
    ) -> Parts:
        """Return as parts what an earlier version kept in columns."""
        parts = {f"{_SCORES}{name}": values for name, values in scores.items()}
        if token_ids:
            parts["token_ids"] = token_ids
        elif sha256:
            parts |= self.hashed(bytes.fromhex(sha256))
        return parts


def kept_of(payloads: list[Mapping[str, bytes] | None]) -> Kept:
    """Return what opened *payloads* of one request hold; a later one wins."""
    parts: Parts = {}
    for payload in payloads:
        parts |= payload or {}
    return Kept(
        scores={
            name.removeprefix(_SCORES): data
            for name, data in parts.items()
            if name.startswith(_SCORES)
        },
        contributions={
            name.removeprefix(_CONTRIBUTIONS): _unpack(data)
            for name, data in parts.items()
            if name.startswith(_CONTRIBUTIONS)
        },
        token_ids=parts.get("token_ids", b""),
        digest=parts.get("hash", b"").hex(),
        text=tuple(json.loads(parts.get("text", b"[]"))),
        is_erased=any(payload is None for payload in payloads),
    )


def _pack(contributions: tuple[Contribution, ...]) -> bytes:
    out: list[bytes] = []
    for one in contributions:
        name = one.name.encode()
        out += (_CONTRIBUTION.pack(one.value, one.share, len(name)), name)
    return b"".join(out)


def _unpack(data: bytes) -> tuple[Contribution, ...]:
    found: list[Contribution] = []
    start = 0
    while start < len(data):
        value, share, n = _CONTRIBUTION.unpack_from(data, start)
        start += _CONTRIBUTION.size + n
        name = data[start - n : start].decode()
        found.append(Contribution(name=name, value=value, share=share))
    return tuple(found)


def hash_key(path: Path) -> bytes:
    """
    Read the key of the keyed hash, or make one.

    Raises:
        ValueError: What is there is no key.
        OSError: It cannot be read or written.
    """
    if not path.exists():
        write_secret(path, secrets.token_bytes(_HASH_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _HASH_KEY_BYTES:
        raise ValueError(
            f"hash key {path}: expected {_HASH_KEY_BYTES} bytes, got {len(key)}"
        )
    return key


def load_decoder(path: Path) -> Decode:
    """
    Return what turns token ids into text, by the tokenizer at *path*.

    Args:
        path: A ``tokenizer.json``, or the folder that holds one.

    Raises:
        ValueError: There is none, or it is none.
    """
    try:
        return TokenTexts.load(path).texts
    except ValueError as error:
        raise ValueError(f"audit.tokenizer: {error}") from error
