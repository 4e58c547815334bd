"""Refuses batches and gaps that cannot be what a sender saw."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from monitor.records import Gap, StepBatch


class BatchError(ValueError):
    """A batch or gap is malformed. Nothing was counted and no state changed."""


def check_batch(
    batch: StepBatch,
    *,
    widths: Mapping[str, int],
    max_positions: int,
) -> None:
    """
    Raise `BatchError` unless *batch* is consistent with itself and with *widths*.

    Args:
        batch: Any batch.
        widths: Expected columns (or d_model) by hook point; empty when the batch was
            made by another bank, whose widths nobody here knows.
        max_positions: Longest sequence that is believed.
    """
    n_requests = len(batch.request_ids)
    if len(set(batch.request_ids)) != n_requests:
        raise BatchError("request_ids: expected each once, got duplicates")
    if len(set(batch.finished)) != len(batch.finished):
        raise BatchError("finished: expected each once, got duplicates")
    _check_integers("row_offsets", batch.row_offsets, n_requests + 1)
    for name in ("first_positions", "n_cached", "n_prompt_tokens"):
        values: NDArray[np.int64] = getattr(batch, name)
        _check_integers(name, values, n_requests)
        if n_requests and values.min() < 0:
            raise BatchError(f"{name}: expected 0 or more, got {values.min()}")
    n_rows_each = np.diff(batch.row_offsets)
    if batch.row_offsets[0] != 0 or (n_requests and n_rows_each.min() < 0):
        raise BatchError("row_offsets: expected to rise from 0")
    n_rows = int(batch.row_offsets[-1])
    if n_requests:
        last = int((batch.first_positions + n_rows_each).max())
        if last > max_positions:
            raise BatchError(
                f"first_positions: expected to end by {max_positions}, got {last}"
            )
    if batch.token_ids.shape != (n_rows,):
        raise BatchError(
            f"token_ids: expected shape ({n_rows},), got {batch.token_ids.shape}"
        )
    if len(batch.n_drafts):
        _check_integers("n_drafts", batch.n_drafts, n_requests)
        if batch.n_drafts.min() < 0 or (batch.n_drafts > n_rows_each).any():
            raise BatchError("n_drafts: expected 0 up to the rows of each request")
    longest = max(batch.n_positions.values(), default=0)
    if longest > max_positions:
        raise BatchError(f"n_positions: expected up to {max_positions}, got {longest}")
    _check_sharing(batch, n_rows)
    _check_rows(batch, n_rows, widths)


def check_gap(gap: Gap, *, max_positions: int) -> None:
    """Raise `BatchError` unless *gap* counts at least what it lists."""
    n_listed = sum(lost.n_tokens for lost in gap.lost)
    if any(lost.n_tokens < 0 or lost.first_position < 0 for lost in gap.lost):
        raise BatchError("gap.lost: expected positions and counts of 0 or more")
    if gap.n_tokens < n_listed:
        raise BatchError(
            f"gap.n_tokens: expected at least the {n_listed} listed, got {gap.n_tokens}"
        )
    last = max((lost.first_position + lost.n_tokens for lost in gap.lost), default=0)
    if last > max_positions:
        raise BatchError(f"gap.lost: expected to end by {max_positions}, got {last}")


def _check_sharing(batch: StepBatch, n_rows: int) -> None:
    if len(batch.slots) and batch.slots.shape != (n_rows,):
        raise BatchError(f"slots: expected ({n_rows},), got {batch.slots.shape}")
    n_requests = len(batch.request_ids)
    if batch.adapters and len(batch.adapters) != n_requests:
        raise BatchError(
            f"adapters: expected {n_requests} or none, got {len(batch.adapters)}"
        )
    for index, prefix in batch.cached.items():
        if not 0 <= index < n_requests:
            raise BatchError(f"cached: expected one of {n_requests}, got {index}")
        first = int(batch.first_positions[index])
        if not len(prefix.token_ids) == len(prefix.slots) == first:
            raise BatchError(
                f"cached of {batch.request_ids[index]}: expected the {first} tokens "
                f"before its rows, got {len(prefix.token_ids)} and "
                f"{len(prefix.slots)} slots"
            )
        if first and min(prefix.token_ids.min(), prefix.slots.min()) < 0:
            raise BatchError("cached: expected token ids and slots of 0 or more")


def _check_rows(batch: StepBatch, n_rows: int, widths: Mapping[str, int]) -> None:
    if batch.columns and batch.activations:
        raise BatchError("expected columns or activations, got both")
    values = batch.activations or batch.columns
    if values.keys() != batch.squared_norms.keys():
        raise BatchError(
            f"squared_norms: expected hook points {sorted(values)}, "
            f"got {sorted(batch.squared_norms)}"
        )
    if widths and values.keys() != widths.keys() and (values or n_rows):
        raise BatchError(
            f"hook points: expected {sorted(widths)}, got {sorted(values)}"
        )
    for hook_point, rows in values.items():
        width = widths.get(hook_point, rows.shape[-1] if rows.ndim else 0)
        _check_floats(hook_point, rows, (n_rows, width))
        _check_floats(
            f"squared_norms of {hook_point}", batch.squared_norms[hook_point], (n_rows,)
        )


def _check_floats(
    name: str, values: NDArray[np.float32], shape: tuple[int, ...]
) -> None:
    if values.shape != shape or values.dtype != np.float32:
        raise BatchError(
            f"{name}: expected float32 of shape {shape}, "
            f"got {values.dtype} {values.shape}"
        )


def _check_integers(name: str, values: NDArray[np.int64], length: int) -> None:
    if values.shape != (length,) or values.dtype != np.int64:
        raise BatchError(
            f"{name}: expected int64 of shape ({length},), "
            f"got {values.dtype} {values.shape}"
        )
