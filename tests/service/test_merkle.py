"""The tree and its proofs, against RFC 6962's vectors and against each other."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.daemon.audit.merkle import CompactRange, leaf_hash, root_of
from service.daemon.audit.proofs import (
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
)

# The tree of certificate-transparency's merkle_tree_test.cc, which every
# implementation of RFC 6962 is held to: leaves, and the root over the first n.
RECORDS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(record) for record in RECORDS]

sizes = st.integers(min_value=1, max_value=70)


def leaves_of(n: int) -> list[bytes]:
    """*n* leaves, all different."""
    return [leaf_hash(str(i).encode()) for i in range(n)]


def range_of(leaves: list[bytes]) -> CompactRange:
    """A range to which *leaves* were appended."""
    made = CompactRange()
    for leaf in leaves:
        made.append(leaf)
    return made


class TestRoot:
    @pytest.mark.parametrize("n", range(9))
    def test_is_that_of_the_published_vectors(self, n: int) -> None:
        """
        The root over the first n leaves is RFC 6962's, by both ways to compute it.
        """
        assert ROOTS[n] == root_of(LEAVES[:n]).hex()
        assert ROOTS[n] == range_of(LEAVES[:n]).root().hex()

    @settings(deadline=None)
    @given(sizes, sizes)
    def test_a_range_goes_on_where_it_was_stored(self, n: int, more: int) -> None:
        """
        A range that was stored and read grows as if it had never been away.
        """
        leaves = leaves_of(n + more)
        stored = range_of(leaves[:n]).to_bytes()

        read = CompactRange.from_bytes(n, stored)
        for leaf in leaves[n:]:
            read.append(leaf)

        assert root_of(leaves) == read.root()

    def test_a_range_of_another_length_is_refused(self) -> None:
        """
        A stored range must have a hash for every bit of its size.
        """
        with pytest.raises(ValueError, match="expected 2 hashes of 32 bytes, got 1"):
            CompactRange.from_bytes(3, bytes(32))


class TestInclusion:
    def test_has_the_published_path(self) -> None:
        """
        The path of the sixth of eight leaves is the published one.
        """
        path = [node.hex()[:8] for node in inclusion_proof(LEAVES, 5)]

        assert ["bc1a0643", "ca854ea1", "d37ee418"] == path

    @settings(deadline=None)
    @given(sizes, st.data())
    def test_shows_a_leaf_and_no_other(self, n: int, data: st.DataObject) -> None:
        """
        A proof holds for its leaf, and not for another leaf, place, root or path.
        """
        leaves = leaves_of(n)
        index = data.draw(st.integers(0, n - 1))
        proof, root = inclusion_proof(leaves, index), root_of(leaves)

        assert is_included(leaves[index], index, n, proof, root)
        assert not is_included(sha256(b"x").digest(), index, n, proof, root)
        assert not is_included(leaves[index], index, n, proof, sha256(b"x").digest())
        assert not is_included(leaves[index], index, n, [*proof, root], root)
        assert not is_included(leaves[index], n, n, proof, root)
        if n > 1:
            other = (index + 1) % n
            assert not is_included(leaves[index], other, n, proof, root)
            assert not is_included(leaves[index], index, n, proof[1:], root)

    def test_a_leaf_that_is_not_there_has_none(self) -> None:
        """
        There is no proof of a leaf beyond the end.
        """
        with pytest.raises(IndexError, match="expected one below 8"):
            inclusion_proof(LEAVES, 8)


class TestConsistency:
    @settings(deadline=None)
    @given(sizes, st.data())
    def test_shows_a_beginning_and_no_other(self, n: int, data: st.DataObject) -> None:
        """
        A proof holds between a tree and its beginning, and for no altered root.
        """
        leaves = leaves_of(n)
        m = data.draw(st.integers(1, n))
        first, later = root_of(leaves[:m]), root_of(leaves)
        proof, wrong = consistency_proof(leaves, m), sha256(b"x").digest()

        assert is_consistent(m, first, n, later, proof)
        assert not is_consistent(m, wrong, n, later, proof)
        assert not is_consistent(m, first, n, wrong, proof)
        assert not is_consistent(m, first, n, later, [*proof, wrong])
        if proof:
            assert not is_consistent(m, first, n, later, proof[:-1])

    @settings(deadline=None)
    @given(st.integers(2, 70), st.data())
    def test_a_rewritten_beginning_has_no_proof(
        self, n: int, data: st.DataObject
    ) -> None:
        """
        Where an old leaf was replaced, the new tree's own proof does not hold.
        """
        leaves = leaves_of(n)
        m = data.draw(st.integers(1, n - 1))
        index = data.draw(st.integers(0, m - 1))
        first = root_of(leaves[:m])
        leaves[index] = leaf_hash(b"another")

        proof = consistency_proof(leaves, m)

        assert not is_consistent(m, first, n, root_of(leaves), proof)

    def test_of_nothing_there_is_none(self) -> None:
        """
        A proof is from one leaf on.
        """
        with pytest.raises(ValueError, match="expected 1 to 8, got 0"):
            consistency_proof(LEAVES, 0)
