"""Which row of a step belongs to which token: read after the runner's update.

Rule: nothing here is called before the runner's `execute_model` has returned. That
call reorders the batch; a layout read before it gives rows to the wrong requests,
and nothing but the scores would show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class LayoutError(RuntimeError):
    """The runner's batch does not fit what the scheduler asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """
    The layout of one step.

    Attributes:
        request_ids: In row order.

        n_rows: int64 of shape (n_requests,); contiguous rows each.

        first_positions: int64 of shape (n_requests,).

        token_ids: int tensor of shape (n_rows,) on the model's device: a view of a
            buffer that the next step overwrites.

        slots: int tensor of shape (n_rows,), likewise: the KV slot of each row. None
            where they can not be told.

        first_drafts: By request, the position of its first draft token, which may be
            rejected, as may all that follow.
    """

    request_ids: tuple[str, ...]
    n_rows: NDArray[np.int64]
    first_positions: NDArray[np.int64]
    token_ids: torch.Tensor
    slots: torch.Tensor | None = None
    first_drafts: Mapping[str, int] = field(default_factory=dict)

    def n_drafts(self, request_id: str, end: int) -> int:
        """Return how many of a request's rows before position *end* are of drafts."""
        first = self.first_drafts.get(request_id)
        return 0 if first is None else max(0, end - first)

    def cut(self, start: int, stop: int) -> tuple["Rows", list[int]]:
        """Return the rows from *start* to *stop*, and which requests they are of."""
        ends = np.cumsum(self.n_rows)
        begins = ends - self.n_rows
        kept = np.flatnonzero((begins < stop) & (ends > start)).tolist()
        first, last = np.maximum(begins, start), np.minimum(ends, stop)
        part = Rows(
            request_ids=tuple(self.request_ids[i] for i in kept),
            n_rows=(last - first)[kept],
            first_positions=(self.first_positions + first - begins)[kept],
            token_ids=self.token_ids[start:stop],
            slots=None if self.slots is None else self.slots[start:stop],
            first_drafts=self.first_drafts,
        )
        return part, kept


def scheduled_rows(scheduler_output: Any) -> Rows:
    """
    Return the layout that the scheduler asked for: to name rows that were lost.

    The order is the scheduler's, not that of the runner's buffers; no token ids.
    """
    first = {
        r.req_id: r.num_computed_tokens for r in scheduler_output.scheduled_new_reqs
    }
    cached = scheduler_output.scheduled_cached_reqs
    first.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    n_rows = scheduler_output.num_scheduled_tokens
    rows = Rows(
        request_ids=tuple(n_rows),
        n_rows=np.array(list(n_rows.values()), dtype=np.int64),
        first_positions=np.array([first[i] for i in n_rows], dtype=np.int64),
        token_ids=torch.empty(0, dtype=torch.int32),
    )
    return replace(rows, first_drafts=_first_drafts(rows, scheduler_output))


def read_rows(runner: Any, scheduler_output: Any) -> Rows:
    """
    Return the layout of the step that *runner* has just executed.

    Raises:
        LayoutError: The rows do not add up to the scheduled tokens.
    """
    state = getattr(runner, "execute_model_state", None)
    if state is not None and hasattr(state, "input_batch"):
        rows = _rows_of_v2(state.input_batch)
    else:
        rows = _rows_of_v1(runner, scheduler_output)
    expected = scheduler_output.num_scheduled_tokens
    seen = dict(zip(rows.request_ids, rows.n_rows.tolist(), strict=True))
    if seen != expected:
        raise LayoutError(f"the scheduler asked for {expected}, the runner has {seen}")
    return replace(
        rows,
        slots=_slots(runner, state, len(rows.token_ids)),
        first_drafts=_first_drafts(rows, scheduler_output),
    )


def block_size_of(runner: Any) -> int:
    """
    Return how many tokens a KV block holds, or 0 where slots do not name tokens.

    With several groups of layers, as hybrid models have, a token has a slot in each,
    and some of them are given up while the prefix is still shared.
    """
    groups = runner.kv_cache_config.kv_cache_groups
    return int(groups[0].kv_cache_spec.block_size) if len(groups) == 1 else 0


def _first_drafts(rows: Rows, scheduler_output: Any) -> dict[str, int]:
    drafts = scheduler_output.scheduled_spec_decode_tokens
    if not drafts:
        return {}
    ends = (rows.first_positions + rows.n_rows).tolist()
    return {
        request_id: end - len(drafts[request_id])
        for request_id, end in zip(rows.request_ids, ends, strict=True)
        if request_id in drafts
    }


def _slots(runner: Any, state: Any, n_rows: int) -> torch.Tensor | None:
    # One name on each runner. Every layer of the one group has the same.
    by_layer = getattr(state, "slot_mappings", None) or getattr(
        state, "slot_mappings_by_layer", None
    )
    tables = getattr(getattr(runner, "input_batch", None), "block_table", None)
    if state is None and tables is not None:
        # A pipeline stage before the last, on V1: what the mappings are views of.
        own: torch.Tensor = tables[0].slot_mapping.gpu[:n_rows]
        return own
    if not isinstance(by_layer, dict):
        return None
    slots: torch.Tensor = next(iter(by_layer.values()))
    return slots[:n_rows]


def _rows_of_v1(runner: Any, scheduler_output: Any) -> Rows:
    batch = runner.input_batch
    n_requests = batch.num_reqs
    request_ids = tuple(batch.req_ids[:n_requests])
    scheduled = scheduler_output.num_scheduled_tokens
    n_rows = np.array([scheduled.get(i, 0) for i in request_ids], dtype=np.int64)
    return Rows(
        request_ids=request_ids,
        n_rows=n_rows,
        first_positions=batch.num_computed_tokens_cpu[:n_requests].astype(np.int64),
        token_ids=runner.input_ids.gpu[: int(n_rows.sum())],
    )


def _rows_of_v2(batch: Any) -> Rows:
    starts = batch.query_start_loc_np[: batch.num_reqs + 1].astype(np.int64)
    return Rows(
        request_ids=tuple(batch.req_ids[: batch.num_reqs]),
        n_rows=np.diff(starts),
        first_positions=batch.num_computed_tokens_np[: batch.num_reqs].astype(np.int64),
        token_ids=batch.input_ids[: int(starts[-1])],
    )
