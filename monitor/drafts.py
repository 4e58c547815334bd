"""Holds back the rows of draft tokens until the engine has said which it kept."""

# Speculative decoding computes tokens that may be rejected: their rows come like any
# others. A row is believed once a later step of its request starts beyond it, or the
# request's end says how many positions it has. What is not believed is dropped, and
# nobody counts it: it was no token of the request.

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monitor.ended import Key
from monitor.records import StepBatch

_Arrays = Mapping[str, NDArray[np.float32]]


class Drafts:
    """The draft rows of every live request's last step, a batch for each of them."""

    def __init__(self) -> None:
        # Several where a step was so large that it travelled in parts.
        self._held: dict[Key, list[StepBatch]] = {}

    def settle(self, batch: StepBatch) -> list[StepBatch]:
        """
        Return what is final with *batch*: rows that were held, then its own.

        Who finished is told with the last.
        """
        has_drafts = bool(batch.n_drafts.any())
        if not (self._held or has_drafts):
            return [batch]
        n_final = np.diff(batch.row_offsets)
        if has_drafts:
            n_final = n_final - batch.n_drafts
        settled = self._release(batch, n_final)
        if has_drafts:
            self._hold(batch, n_final)
            starts = batch.row_offsets[:-1]
            rows = [np.arange(s, s + n) for s, n in zip(starts, n_final, strict=True)]
            kept = np.flatnonzero(n_final)
            own = _take(batch, np.concatenate(rows), kept, n_final[kept])
            batch = replace(own, finished=batch.finished, preempted=batch.preempted)
        return [*settled, batch]

    def is_held(self, key: Key) -> bool:
        """Return whether rows of a request wait for a decision."""
        return key in self._held

    def forget(self, key: Key) -> None:
        """Drop what is held of a request."""
        self._held.pop(key, None)

    def _hold(self, batch: StepBatch, n_final: NDArray[np.int64]) -> None:
        ends = batch.row_offsets[1:]
        for i in np.flatnonzero(batch.n_drafts).tolist():
            n = int(batch.n_drafts[i])
            own = _take(batch, np.arange(ends[i] - n, ends[i]), np.array([i]), [n])
            own = replace(own, first_positions=own.first_positions + n_final[i])
            key = (batch.engine, batch.request_ids[i])
            self._held.setdefault(key, []).append(own)

    def _release(self, batch: StepBatch, n_final: NDArray[np.int64]) -> list[StepBatch]:
        """What *batch* shows to be final of the rows that are held."""
        begins = {
            batch.request_ids[i]: int(batch.first_positions[i])
            for i in np.flatnonzero(n_final).tolist()
        }
        for request_id, position in batch.n_positions.items():
            begins.setdefault(request_id, position)
        # Only what has the same columns, or the same hook points, can be joined.
        released: dict[tuple[object, ...], list[StepBatch]] = {}
        for request_id, position in begins.items():
            held = self._held.pop((batch.engine, request_id), ())
            for part, rows in enumerate(held):
                n = min(position - int(rows.first_positions[0]), len(rows.token_ids))
                if n > 0:
                    kept = _take(rows, np.arange(n), np.array([0]), [n])
                    kind = (rows.bank_digest, *rows.activations, part)
                    released.setdefault(kind, []).append(kept)
        return [replace(_joined(rows), step=batch.step) for rows in released.values()]


def _take(
    batch: StepBatch,
    rows: NDArray[np.int64],
    requests: NDArray[np.int64],
    n_rows_each: Iterable[int],
) -> StepBatch:
    """Return *rows* of *batch*, which are of *requests*, so many each."""
    index = {old: new for new, old in enumerate(requests.tolist())}

    def of(arrays: _Arrays) -> _Arrays:
        return {hook_point: values[rows] for hook_point, values in arrays.items()}

    return replace(
        batch,
        columns=of(batch.columns),
        activations=of(batch.activations),
        squared_norms=of(batch.squared_norms),
        request_ids=tuple(batch.request_ids[i] for i in index),
        row_offsets=np.array([0, *n_rows_each], dtype=np.int64).cumsum(),
        first_positions=batch.first_positions[requests],
        n_cached=batch.n_cached[requests],
        n_prompt_tokens=batch.n_prompt_tokens[requests],
        token_ids=batch.token_ids[rows],
        finished=(),
        preempted=(),
        slots=batch.slots[rows] if len(batch.slots) else batch.slots,
        cached={index[i]: prefix for i, prefix in batch.cached.items() if i in index},
        adapters=tuple(batch.adapters[i] for i in index) if batch.adapters else (),
        n_drafts=np.zeros(len(index), dtype=np.int64),
        n_positions={},
    )


def _joined(batches: Sequence[StepBatch]) -> StepBatch:
    """Return the rows of *batches*, of one request each, all of one bank."""
    names = ("first_positions", "n_cached", "n_prompt_tokens", "n_drafts", "token_ids")
    arrays: dict[str, NDArray[np.generic]] = {
        name: np.concatenate([getattr(b, name) for b in batches])
        for name in (*names, "slots")
    }
    tables: dict[str, _Arrays] = {
        name: {
            h: np.concatenate([getattr(b, name)[h] for b in batches])
            for h in getattr(batches[0], name)
        }
        for name in ("columns", "activations", "squared_norms")
    }
    adapters = tuple(b.adapters[0] if b.adapters else "" for b in batches)
    return replace(
        batches[0],
        request_ids=tuple(b.request_ids[0] for b in batches),
        row_offsets=np.array([0, *(len(b.token_ids) for b in batches)]).cumsum(),
        # Behind its first rows nothing starts: what was cached was said with those.
        cached={},
        adapters=adapters if any(adapters) else (),
        **arrays,  # type: ignore[arg-type]
        **tables,  # type: ignore[arg-type]
    )
