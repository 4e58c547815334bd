"""The statistics of many requests under many detectors, as their tokens come."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64, Int64
from probes.detector import Detector


@dataclass(slots=True, eq=False)
class _Group:
    """
    Detectors with one aggregator: updated as if each were some more requests.

    *states* is (n_slots, n_members, state_size).
    """

    aggregator: Aggregator
    members: Int64
    states: Float64


class RunningStatistics:
    """One row (slot) a request, so that a step updates all of them at once."""

    def __init__(self, detectors: Sequence[Detector], n_slots: int) -> None:
        members: dict[Aggregator, list[int]] = {}
        for index, detector in enumerate(detectors):
            members.setdefault(detector.aggregator, []).append(index)
        self._groups = [
            _Group(a, np.array(indices, dtype=np.int64), _start(a, n_slots, indices))
            for a, indices in members.items()
        ]
        self._n_detectors = len(detectors)

    def grow(self, n_more: int) -> None:
        """Add *n_more* slots without a token."""
        for group in self._groups:
            more = _start(group.aggregator, n_more, group.members)
            group.states = np.concatenate([group.states, more])

    def reset(self, slot: int) -> None:
        """Forget what *slot* has seen."""
        for group in self._groups:
            group.states[slot] = group.aggregator.start(1)[0]

    def update(
        self,
        slots: Int64,
        evidence: Sequence[Float32],
        row_offsets: Int64,
        is_answer: NDArray[np.bool_],
    ) -> Float64:
        """
        Fold each detector's *evidence* (n_tokens, m) into its requests' states.

        Args:
            slots: Of shape (n_requests,), each once.

            evidence: Per detector.

            row_offsets: Of shape (n_requests + 1,), into the evidence.

            is_answer: Of shape (n_tokens,); the tokens the model answers at.

        Returns:
            The statistics so far, (n_requests, n_detectors); -inf before any token
            that counts.
        """
        n_before = np.concatenate([[0], is_answer.cumsum()])
        answer_offsets = n_before[row_offsets]
        statistics = np.empty((len(slots), self._n_detectors))
        for group in self._groups:
            is_all = group.aggregator.tokens == "all"
            offsets = row_offsets if is_all else answer_offsets
            parts = [evidence[i] for i in group.members]
            if not is_all:
                parts = [part[is_answer] for part in parts]
            statistics[:, group.members] = _update(group, slots, parts, offsets)
        return statistics


def _start(
    aggregator: Aggregator, n_slots: int, members: Sequence[int] | Int64
) -> Float64:
    one = aggregator.start(1)[:, None, :]
    return np.tile(one, (n_slots, len(members), 1))


def _update(
    group: _Group, slots: Int64, evidence: Sequence[Float32], row_offsets: Int64
) -> Float64:
    """Statistics of one group, (n_requests, n_members)."""
    n_requests, n_members = len(slots), len(group.members)
    n_tokens = int(row_offsets[-1])
    # Member by member, as so many requests one after the other.
    states = group.states[slots].swapaxes(0, 1).reshape(n_members * n_requests, -1)
    starts = np.arange(n_members)[:, None] * n_tokens + row_offsets[:-1]
    offsets = np.append(starts.ravel(), n_members * n_tokens)
    states, statistics = group.aggregator.update(
        states, np.concatenate(evidence), offsets
    )
    per_member = states.reshape(n_members, n_requests, -1)
    group.states[slots] = per_member.swapaxes(0, 1)
    return statistics.reshape(n_members, n_requests).T
