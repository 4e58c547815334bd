# What the tokens of every live request scored would be, with 64 detectors, 256 bytes a
# token: most of the monitor's memory, for the few requests that are ever flagged. So
# the last tokens of all requests share one ring, and a flag looks its request up in it.
"""The scores of the last tokens, of all requests together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NOBODY = -1
# Above it a look-up of a request that began long ago would take milliseconds.
_MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class RequestHistory:
    """
    What is kept of one request.

    Attributes:
        positions: Of its tokens that are kept, int64 (n_kept,).

        scores: float32 (n_kept, n_detectors).

        token_ids: int32 of shape (n_tokens,), -1 where unknown.

        numbers: What `TokenHistory.write` numbered the tokens, int64 (n_kept,).
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]
    token_ids: NDArray[np.int32]
    numbers: NDArray[np.int64]

    def scores_of(self, detector: int) -> NDArray[np.float32]:
        """Evidence a token from position 0, (n_tokens,); NaN where it is not kept."""
        scores = np.full(len(self.token_ids), np.nan, dtype=np.float32)
        scores[self.positions] = self.scores[:, detector]
        return scores

    def number_at(self, position: int) -> int:
        """The number of the token at *position*; -1 where it is not kept."""
        found = np.flatnonzero(self.positions == position)
        return int(self.numbers[found[-1]]) if len(found) else -1


NO_HISTORY = RequestHistory(
    np.empty(0, dtype=np.int64),
    np.empty((0, 0), dtype=np.float32),
    np.empty(0, dtype=np.int32),
    np.empty(0, dtype=np.int64),
)
"""Of a request that nobody looks up."""


class TokenHistory:
    """A ring of scored tokens: the oldest make room for the newest."""

    def __init__(self, n_detectors: int, max_bytes: int) -> None:
        n_tokens = max_bytes // (4 * n_detectors + 12)
        n_tokens = min(max(n_tokens, 1), _MAX_TOKENS)
        self._scores = np.zeros((n_tokens, n_detectors), dtype=np.float32)
        self._owners = np.full(n_tokens, _NOBODY, dtype=np.int32)
        self._positions = np.zeros(n_tokens, dtype=np.int32)
        self._token_ids = np.zeros(n_tokens, dtype=np.int32)
        self._n_written = 0

    @property
    def next_number(self) -> int:
        """What the next token that is written is numbered."""
        return self._n_written

    def write(
        self,
        owners: NDArray[np.int64],
        positions: NDArray[np.int64],
        scores: NDArray[np.float32],
        token_ids: NDArray[np.int32],
    ) -> int:
        """
        Keep a step's tokens, numbered on from those before; return the first's number.

        Args:
            owners: Of shape (n,): a number that no other request has.
            positions: Of shape (n,).
            scores: Of shape (n, n_detectors).
            token_ids: Of shape (n,).
        """
        capacity = len(self._owners)
        first = self._n_written
        kept = slice(max(0, len(owners) - capacity), None)
        n = len(owners[kept])
        # A token's number says where it is.
        place = (first + len(owners) - n) % capacity
        n_to_end = min(n, capacity - place)
        for ring, values in (
            (self._scores, scores),
            (self._owners, owners),
            (self._positions, positions),
            (self._token_ids, token_ids),
        ):
            ring[place : place + n_to_end] = values[kept][:n_to_end]
            ring[: n - n_to_end] = values[kept][n_to_end:]
        self._n_written = first + len(owners)
        return first

    def of(self, owner: int, n_tokens: int, since: int = 0) -> RequestHistory:
        """
        Return what is kept of the first *n_tokens* of a request.

        None of its tokens has a number below *since*: what is older is not read.
        """
        capacity = len(self._owners)
        n = min(self._n_written - since, capacity)
        place = (self._n_written - n) % capacity
        n_to_end = min(n, capacity - place)
        to_end = np.flatnonzero(self._owners[place : place + n_to_end] == owner)
        on = np.flatnonzero(self._owners[: n - n_to_end] == owner)
        rows = np.concatenate([to_end + place, on])
        positions = self._positions[rows].astype(np.int64)
        is_known = positions < n_tokens
        rows, positions = rows[is_known], positions[is_known]
        token_ids = np.full(n_tokens, -1, dtype=np.int32)
        token_ids[positions] = self._token_ids[rows]
        last = self._n_written - 1
        numbers = last - (last - rows) % capacity
        return RequestHistory(positions, self._scores[rows], token_ids, numbers)
