# RFC 9162, section 2.1.3 and 2.1.4. Making a proof takes all leaves; checking one
# takes the proof, and nothing of the log.
"""Proofs that a leaf is in a tree, and that a tree is the beginning of another."""

from collections.abc import Sequence

from service.daemon.audit.merkle import node_hash, root_of, split


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """
    Return the hashes that lead from a leaf to the root, the lowest first.

    Raises:
        IndexError: There is no leaf *index*.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index}: expected one below {len(leaves)}")
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*inclusion_proof(leaves[:k], index), root_of(leaves[k:])]
    return [*inclusion_proof(leaves[k:], index - k), root_of(leaves[:k])]


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """
    Return the hashes that show that the first *size* leaves are what they were.

    Raises:
        ValueError: *size* is none of 1 to the number of leaves.
    """
    if not 0 < size <= len(leaves):
        raise ValueError(f"size: expected 1 to {len(leaves)}, got {size}")
    return _subproof(leaves, size, is_whole=True)


def _subproof(leaves: Sequence[bytes], size: int, *, is_whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if is_whole else [root_of(leaves)]
    k = split(len(leaves))
    if size <= k:
        return [*_subproof(leaves[:k], size, is_whole=is_whole), root_of(leaves[k:])]
    return [*_subproof(leaves[k:], size - k, is_whole=False), root_of(leaves[:k])]


def is_included(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Return whether *proof* shows *leaf* at *index* of the tree of *size* leaves."""
    if not 0 <= index < size:
        return False
    position, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(sibling, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(
    size: int, root: bytes, later_size: int, later_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether *proof* shows the first tree to be the beginning of the later."""
    if size == later_size:
        return not proof and root == later_root
    if not 0 < size < later_size or not proof:
        return False
    path = list(proof)
    if size & (size - 1) == 0:  # Then the first root is a node of the later tree.
        path.insert(0, root)
    position, last = size - 1, later_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and first == root and second == later_root
