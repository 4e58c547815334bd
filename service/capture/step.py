"""What the engine's thread hands over: the rows of one step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from service.capture.arena import Piece
from service.capture.requests import RequestFacts
from service.capture.rows import Rows


def overhead(n_requests: int) -> int:
    """Bytes that a step takes beside its rows: ids, layout, objects."""
    return 1024 + 48 * n_requests


_INTEGERS: Mapping[int, type[np.integer]] = {4: np.int32, 8: np.int64}


class Shape(NamedTuple):
    """Of the rows that lie in a piece; ids are of 4 bytes or 8, slots of 0 for none."""

    n_sites: int
    n_rows: int
    width: int
    id_bytes: int
    slot_bytes: int

    @property
    def n_bytes(self) -> int:
        """What all of them take."""
        n_columns = self.n_sites * (self.width + 1)
        return self.n_rows * (4 * n_columns + self.id_bytes + self.slot_bytes)


def row_bytes(n_sites: int, width: int) -> int:
    """
    Bytes that are enough for a row.

    For *width* values and a squared norm a site, a token id and a slot: these two as
    the runner has them, of 4 bytes or of 8.
    """
    return 4 * n_sites * (width + 1) + 16


@dataclass(slots=True, kw_only=True, eq=False)
class Step:
    """
    One step as captured. The engine's thread fills it in, and leaves it alone once put.

    Its rows are in *piece*, as *shape* says; on CUDA they are complete once *copied*
    is. *shape* is None when the step was lost or had no rows. `unpack` makes arrays of
    them: *values*, float32 of shape (n_sites, n_rows, width), *squared_norms*
    (n_sites, n_rows), *token_ids* and *slots*, (n_rows,), int32 or int64 as the runner
    has them. They are None before.

    *facts* are of each request, in row order. *n_positions* are of
    the finished whose last step had drafts. A lost step that would have travelled in
    parts stands for *n_steps*, of which *step* is the last.
    """

    step: int
    bank_digest: str
    captured_at: float
    n_rows_expected: int
    rows: Rows | None
    n_steps: int = 1
    facts: tuple[RequestFacts, ...] = ()
    values: NDArray[np.float32] | None = None
    squared_norms: NDArray[np.float32] | None = None
    token_ids: NDArray[np.integer] | None = None
    slots: NDArray[np.integer] | None = None
    weights_generation: int = 0
    copied: torch.cuda.Event | None = None
    piece: Piece | None = None
    shape: Shape | None = None
    finished: tuple[str, ...] = ()
    n_positions: Mapping[str, int] = field(default_factory=dict)
    preempted: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Memory the step holds, with an allowance for its small parts."""
        n_bytes = overhead(len(self.facts))
        return n_bytes if self.shape is None else n_bytes + self.shape.n_bytes

    @property
    def n_rows(self) -> int:
        """Rows that are held."""
        return 0 if self.shape is None else self.shape.n_rows

    def unpack(self) -> None:
        """Make arrays of the rows where they lie, complete or not."""
        if self.shape is None or self.values is not None:
            return
        assert self.piece is not None
        n_sites, n, width, id_bytes, slot_bytes = self.shape
        at = 0
        self.values = self.piece.array(at, (n_sites, n, width), np.float32)
        at += self.values.nbytes
        self.squared_norms = self.piece.array(at, (n_sites, n), np.float32)
        at += self.squared_norms.nbytes
        self.token_ids = self.piece.array(at, (n,), _INTEGERS[id_bytes])
        at += self.token_ids.nbytes
        if slot_bytes:
            self.slots = self.piece.array(at, (n,), _INTEGERS[slot_bytes])

    @property
    def is_written(self) -> bool:
        """
        Whether the taps wrote every row, and of its request; once *copied* is complete.

        To be asked after the step was made a message: neither is known before.
        """
        assert self.shape is None or self.values is not None
        norms = self.squared_norms
        return norms is None or not bool((norms < 0).any())

    def in_parts(self, max_rows: int) -> Iterator["Step"]:
        """
        Yield the step as several with rising numbers, of at most *max_rows* each.

        What came and went with the step travels with the first part.
        """
        if self.n_rows <= max_rows:
            yield self
            return
        self.unpack()
        assert self.rows is not None
        assert self.shape is not None
        assert self.values is not None
        assert self.squared_norms is not None
        assert self.token_ids is not None
        for part, start in enumerate(range(0, self.n_rows, max_rows)):
            stop = min(start + max_rows, self.n_rows)
            rows, kept = self.rows.cut(start, stop)
            yield replace(
                self,
                step=self.step + part,
                n_rows_expected=stop - start,
                rows=rows,
                facts=tuple(self.facts[i] for i in kept),
                values=self.values[:, start:stop],
                squared_norms=self.squared_norms[:, start:stop],
                token_ids=self.token_ids[start:stop],
                slots=None if self.slots is None else self.slots[start:stop],
                finished=() if part else self.finished,
                preempted=() if part else self.preempted,
                piece=self.piece if stop == self.n_rows else None,
                shape=self.shape._replace(n_rows=stop - start),
            )

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield (request id, first position, number of rows) in row order."""
        if self.rows is None:
            return
        yield from zip(
            self.rows.request_ids,
            self.rows.first_positions.tolist(),
            self.rows.n_rows.tolist(),
            strict=True,
        )
