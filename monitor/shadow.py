"""The score shadow: what the detectors said of the token in each KV slot."""

# A token that is served from the prefix cache never passes through the layers: no row
# of it comes. What was said of it when its slot was filled holds for every request
# that shares the slot, because an activation depends on the tokens up to its own, on
# the weights and on the adapter, and on nothing else.
#
# Rule: a slot is believed for the hash of exactly these, never for its number. Who
# else wrote to the slot, and whether we saw it, then does not matter: a slot that was
# reused, a cache that was reset or blocks that another process loaded are misses, and
# a miss is a lost token.

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from monitor.records import CachedPrefix, StepBatch
from probes.evidence import Evidence

_UInt64 = NDArray[np.uint64]


class PrefixHash:
    """
    A 64-bit hash of the tokens up to a position: a sum of one term each, so that it
    goes on from where it was.

    A term is the splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) of token,
    position and *seed*. Two given prefixes collide with probability 2^-64; the seed is
    random, so that nobody can choose tokens that do.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed & (2**64 - 1)

    def start(self, adapter: str, generation: int) -> int:
        """Return the hash of no token, of weights with *adapter* as of *generation*."""
        said = f"{self._seed} {generation} {adapter}".encode()
        return int.from_bytes(blake2b(said, digest_size=8).digest(), "little")

    def terms(
        self, token_ids: NDArray[np.int32], positions: NDArray[np.int64]
    ) -> _UInt64:
        """Return what each token adds, (n,), given *token_ids* and *positions* (n,)."""
        keys: _UInt64 = (token_ids.astype(np.uint64) << np.uint64(32)) | (
            positions.astype(np.uint64)
        )
        keys ^= np.uint64(self._seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            keys ^= keys >> np.uint64(shift)
            keys *= np.uint64(factor)
        keys ^= keys >> np.uint64(31)
        return keys

    def of_prefix(self, prefix: CachedPrefix, start: int) -> _UInt64:
        """Return the hash at each position of *prefix*, (n,)."""
        positions = np.arange(len(prefix.token_ids))
        hashes = self.terms(prefix.token_ids, positions)
        hashes[:1] += np.uint64(start)
        np.cumsum(hashes, out=hashes)
        return hashes

    def of_rows(
        self,
        batch: StepBatch,
        positions: NDArray[np.int64],
        request_of_row: NDArray[np.int64],
        starts: _UInt64,
    ) -> _UInt64:
        """Return each row's hash, (n_rows,), given each request's before its first."""
        sums = self.terms(batch.token_ids, positions)
        np.cumsum(sums, out=sums)
        before = np.concatenate([np.zeros(1, dtype=np.uint64), sums])
        sums += (starts - before[batch.row_offsets[:-1]])[request_of_row]
        return sums


class ScoreShadow:
    """Evidence by KV slot, of each engine; at most *max_bytes* for each."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tables: dict[str, _Table] = {}

    def store(
        self, engine: str, slots: NDArray[np.int32], hashes: _UInt64, evidence: Evidence
    ) -> None:
        """Keep the *evidence* of tokens by their *slots* and *hashes*, (n,) each."""
        if not len(slots):
            return
        table = self._tables.get(engine)
        if table is None:
            self._tables[engine] = table = _Table.like(evidence, self._max_bytes)
        places = slots % len(table.hashes)
        table.hashes[places] = hashes
        table.rows[places] = table.pack(evidence)

    def fetch(
        self, engine: str, slots: NDArray[np.int32], hashes: _UInt64
    ) -> tuple[NDArray[np.bool_], Evidence]:
        """Return which of the tokens are known, (n,), and the evidence of these."""
        table = self._tables.get(engine)
        if table is None:
            nothing = Evidence(np.empty((0, 0), dtype=np.float32), {})
            return np.zeros(len(slots), dtype=np.bool_), nothing
        places = slots % len(table.hashes)
        is_known = (table.hashes[places] == hashes) & (slots >= 0)
        return is_known, table.unpack(table.rows[places[is_known]])

    def forget(self, engine: str) -> None:
        """Drop what is kept of *engine*, which is gone."""
        self._tables.pop(engine, None)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """
    Attributes:
        hashes: uint64 (n_places,).

        rows: float32 (n_places, width); one number a detector, then the evidence of
            those that have several columns.

        n_detectors: How many.

        widths: Of the evidence with several columns, by the detector's index.
    """

    hashes: _UInt64
    rows: NDArray[np.float32]
    n_detectors: int
    widths: Sequence[tuple[int, int]]

    @classmethod
    def like(cls, evidence: Evidence, max_bytes: int) -> "_Table":
        n_detectors = len(evidence.scores)
        widths = [(i, evidence.wide[i].shape[1]) for i in sorted(evidence.wide)]
        width = n_detectors + sum(n for _, n in widths)
        n_places = max(1, max_bytes // (8 + 4 * width))
        # Zeros of the operating system's: a place takes memory once it is written.
        return cls(
            np.zeros(n_places, dtype=np.uint64),
            np.zeros((n_places, width), dtype=np.float32),
            n_detectors,
            widths,
        )

    def pack(self, evidence: Evidence) -> NDArray[np.float32]:
        wide = [evidence.wide[i] for i, _ in self.widths]
        return np.concatenate([evidence.scores.T, *wide], axis=1)

    def unpack(self, rows: NDArray[np.float32]) -> Evidence:
        wide = {}
        start = self.n_detectors
        for index, width in self.widths:
            wide[index] = np.ascontiguousarray(rows[:, start : start + width])
            start += width
        return Evidence(np.ascontiguousarray(rows[:, : self.n_detectors].T), wide)
