"""What the engine's thread hands over: the rows of one step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from service.capture.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """
    One step as captured.

    *values* is float32 of shape (n_sites, n_rows, width), *squared_norms*
    (n_sites, n_rows) and *token_ids* int32 (n_rows,), all in host memory and ours;
    on CUDA they are complete once *copied* is. They are None when the step was lost
    or had no rows. *facts* holds (n_cached, n_prompt_tokens) a request in row order.
    """

    step: int
    bank_digest: str
    captured_at: float
    n_rows_expected: int
    rows: Rows | None
    facts: tuple[tuple[int, int], ...] = ()
    values: torch.Tensor | None = None
    squared_norms: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    copied: torch.cuda.Event | None = None
    finished: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Memory the step holds, with an allowance for its small parts."""
        tensors = (self.values, self.squared_norms, self.token_ids)
        return 1024 + sum(t.nbytes for t in tensors if t is not None)

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
