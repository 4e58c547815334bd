"""Follows which prefix each row stands behind, to fill in what the cache served."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitor.live import LiveRequest
from monitor.records import CachedPrefix, StepBatch
from monitor.scoring import ScoredRows
from monitor.shadow import PrefixHash, ScoreShadow
from probes.evidence import Evidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traced:
    """
    The prefix hashes of a step.

    Attributes:
        hashes: uint64 (n_rows,); the hash of the tokens up to and with each row's.

        is_known: bool (n_requests,); False where a token before a request's rows is
            not known, so that their hashes mean nothing.

        starts: uint64 (n_requests,); the hash before each request's first row.

        prefixes: By request index, the hash at each token that it begins behind.
    """

    hashes: NDArray[np.uint64]
    is_known: NDArray[np.bool_]
    starts: NDArray[np.uint64]
    prefixes: dict[int, NDArray[np.uint64]]

    def note(self, batch: StepBatch, requests: Sequence[LiveRequest]) -> None:
        """Let *requests*, in row order, remember where their rows stopped."""
        ends = batch.row_offsets[1:]
        n_rows_each = np.diff(batch.row_offsets)
        last = self.starts.copy()
        has_rows = n_rows_each > 0
        last[has_rows] = self.hashes[ends[has_rows] - 1]
        until = np.where(self.is_known, batch.first_positions + n_rows_each, -1)
        for live, one, position in zip(
            requests, last.tolist(), until.tolist(), strict=True
        ):
            live.prefix_hash, live.hashed_until = one, position


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shadowed:
    """
    Tokens from the prefix cache that no count has yet, request by request.

    Attributes:
        indices: int64 (n_requests,); of the requests that have any, into the batch's.

        offsets: int64 (n_requests + 1,); as `StepBatch.row_offsets`.

        positions: int64 (n_tokens,).

        token_ids: int32 (n_tokens,).

        is_found: bool (n_tokens,); whether the shadow knows the token.

        evidence: Of the tokens that it knows.
    """

    indices: list[int]
    offsets: NDArray[np.int64]
    positions: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    is_found: NDArray[np.bool_]
    evidence: Evidence

    def counts(self) -> dict[int, tuple[int, int]]:
        """Return (found, not found) by request index."""
        sums = np.concatenate([[0], self.is_found.cumsum()])
        n_found = np.diff(sums[self.offsets]).tolist()
        n_each = np.diff(self.offsets).tolist()
        return {
            i: (found, n - found)
            for i, found, n in zip(self.indices, n_found, n_each, strict=True)
        }


class Sharing:
    """
    Writes every scored row's evidence to a set's shadow, and reads cached tokens'.

    Each detector set has a score shadow of its own: what one said is never another's.
    """

    def __init__(self, seed: int) -> None:
        self._hash = PrefixHash(seed)

    def trace(
        self,
        batch: StepBatch,
        positions: NDArray[np.int64],
        request_of_row: NDArray[np.int64],
        known: Sequence[LiveRequest | None],
    ) -> Traced:
        """Hash the rows of *batch*; *known* requests go on from where they were."""
        starts, is_known, prefixes = [], [], {}
        usual = self._hash.start("", batch.weights_generation)
        firsts = batch.first_positions.tolist()
        for i, (live, first) in enumerate(zip(known, firsts, strict=True)):
            prefix = batch.cached.get(i)
            if prefix is None and first and live is not None:
                starts.append(live.prefix_hash)
                is_known.append(live.hashed_until == first)
                continue
            start = usual
            if batch.adapters and batch.adapters[i]:
                start = self._hash.start(batch.adapters[i], batch.weights_generation)
            if prefix is not None and len(prefix.token_ids):
                prefixes[i] = self._hash.of_prefix(prefix, start)
                start = int(prefixes[i][-1])
            starts.append(start)
            is_known.append(prefix is not None or not first)
        before = np.array(starts, dtype=np.uint64)
        is_whole = np.array(is_known, dtype=np.bool_)
        is_whole[request_of_row[batch.token_ids < 0]] = False
        return Traced(
            hashes=self._hash.of_rows(batch, positions, request_of_row, before),
            is_known=is_whole,
            starts=before,
            prefixes=prefixes,
        )

    def store(
        self,
        shadow: ScoreShadow,
        batch: StepBatch,
        traced: Traced,
        scored: ScoredRows,
        request_of_row: NDArray[np.int64],
    ) -> None:
        """Keep what was said of the rows that other requests may share."""
        rows, evidence = scored.rows, scored.evidence
        is_kept = (batch.slots[rows] >= 0) & traced.is_known[request_of_row[rows]]
        if not is_kept.all():
            rows, evidence = rows[is_kept], evidence.rows(is_kept)
        shadow.store(batch.engine, batch.slots[rows], traced.hashes[rows], evidence)

    def fetch(
        self,
        shadow: ScoreShadow,
        batch: StepBatch,
        traced: Traced,
        seen_until: NDArray[np.int64],
        is_own: NDArray[np.bool_],
    ) -> Shadowed | None:
        """
        Look up cached tokens of requests that are the shadow's set's; None: no such.

        Args:
            shadow: A set's.
            batch: A step.
            traced: Of *batch*.
            seen_until: Of shape (n_requests,); positions below are counted already.
            is_own: Of shape (n_requests,); whether a request is the set's.
        """
        wanted: list[tuple[int, int, CachedPrefix]] = [
            (i, int(seen_until[i]), batch.cached[i])
            for i in traced.prefixes
            if is_own[i] and seen_until[i] < len(batch.cached[i].token_ids)
        ]
        if not wanted:
            return None
        n_each = [len(prefix.token_ids) - first for _, first, prefix in wanted]
        slots = np.concatenate([prefix.slots[first:] for _, first, prefix in wanted])
        hashes = np.concatenate([traced.prefixes[i][first:] for i, first, _ in wanted])
        is_found, evidence = shadow.fetch(batch.engine, slots, hashes)
        return Shadowed(
            indices=[i for i, _, _ in wanted],
            offsets=np.concatenate([[0], np.cumsum(n_each)]),
            positions=np.concatenate(
                [np.arange(first, len(p.token_ids)) for _, first, p in wanted]
            ),
            token_ids=np.concatenate([p.token_ids[first:] for _, first, p in wanted]),
            is_found=is_found,
            evidence=evidence,
        )
