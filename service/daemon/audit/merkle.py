# RFC 6962, section 2.1: a leaf is hashed behind a 0x00, two nodes behind a 0x01, and
# a tree of n leaves has the largest power of two below n on its left.
"""A Merkle tree that grows at its right end: its root, in logarithmic space."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Self

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(record: bytes) -> bytes:
    """Return the hash of a leaf that holds *record*."""
    return sha256(b"\x00" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over two others."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """
    The roots of the full subtrees that a tree of *size* leaves is made of.

    Enough to go on appending and to name the root at any time; 32 bytes for every bit
    of *size* that is set.
    """

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if len(peaks) != size.bit_count() or any(len(p) != HASH_BYTES for p in peaks):
            raise ValueError(
                f"compact range of {size} leaves: expected {size.bit_count()} hashes "
                f"of {HASH_BYTES} bytes, got {len(peaks)}"
            )
        self.size = size
        self._peaks = list(peaks)

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> Self:
        """
        Read what `to_bytes` wrote for *size* leaves.

        Raises:
            ValueError: It is not as long as that size needs.
        """
        starts = range(0, len(data), HASH_BYTES)
        return cls(size, [data[i : i + HASH_BYTES] for i in starts])

    def to_bytes(self) -> bytes:
        """Return the hashes, the largest subtree's first."""
        return b"".join(self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add the hash of a leaf."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add the hashes of leaves, in order."""
        peaks, size = self._peaks, self.size
        for leaf in leaves:
            n, node = size, leaf
            while n & 1:
                node = sha256(b"\x01" + peaks.pop() + node).digest()
                n >>= 1
            peaks.append(node)
            size += 1
        self.size = size

    def root(self) -> bytes:
        """
        Return the root.

        >>> CompactRange().root().hex()[:16]
        'e3b0c44298fc1c14'
        """
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Return the root over hashes of leaves, as RFC 6962 defines it."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(root_of(leaves[:k]), root_of(leaves[k:]))


def split(n: int) -> int:
    """Return the largest power of two below *n*, which is 2 or more."""
    return 1 << (n - 1).bit_length() - 1
