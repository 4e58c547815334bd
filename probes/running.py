"""The statistics of many requests under many detectors, as their tokens come."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregator
from probes.arrays import Float64, Int64
from probes.detector import Detector
from probes.evidence import Evidence


@dataclass(slots=True, eq=False)
class _Group:
    """
    Detectors with one aggregator: updated as if each were some more requests.

    *start* is the state before any token, (state_size,), and *states* those of all,
    (n_slots, n_members, state_size).
    """

    aggregator: Aggregator
    members: Int64
    start: Float64
    states: Float64


class RunningStatistics:
    """One row (slot) a request, so that a step updates all of them at once."""

    def __init__(self, detectors: Sequence[Detector], n_slots: int) -> None:
        members: dict[Aggregator, list[int]] = {}
        for index, detector in enumerate(detectors):
            members.setdefault(detector.aggregator, []).append(index)
        self._groups = [
            _Group(
                aggregator=a,
                members=np.array(indices, dtype=np.int64),
                start=a.start(1)[0],
                states=np.tile(a.start(1)[0], (n_slots, len(indices), 1)),
            )
            for a, indices in members.items()
        ]
        self._n_detectors = len(detectors)
        self._has_answers = any(a.tokens != "all" for a in members)

    def grow(self, n_more: int) -> None:
        """Add *n_more* slots without a token."""
        for group in self._groups:
            more = np.tile(group.start, (n_more, len(group.members), 1))
            group.states = np.concatenate([group.states, more])

    def reset(self, slot: int) -> None:
        """Forget what *slot* has seen."""
        for group in self._groups:
            group.states[slot] = group.start

    def update(
        self,
        slots: Int64,
        evidence: Evidence,
        row_offsets: Int64,
        is_answer: NDArray[np.bool_],
    ) -> Float64:
        """
        Fold each detector's *evidence* of n_tokens into its requests' states.

        Args:
            slots: Of shape (n_requests,), each once.

            evidence: Of the tokens of all requests, one request after the other.

            row_offsets: Of shape (n_requests + 1,), into the evidence.

            is_answer: Of shape (n_tokens,); the tokens the model answers at.

        Returns:
            The statistics so far, (n_requests, n_detectors); -inf before any token
            that counts.
        """
        statistics = np.empty((len(slots), self._n_detectors))
        if self._has_answers:
            n_before = np.concatenate([[0], is_answer.cumsum()])
            answers, answer_offsets = evidence.rows(is_answer), n_before[row_offsets]
        for group in self._groups:
            if group.aggregator.tokens == "all":
                found = _update(group, slots, evidence, row_offsets)
            else:
                found = _update(group, slots, answers, answer_offsets)
            statistics[:, group.members] = found
        return statistics


def _update(
    group: _Group, slots: Int64, evidence: Evidence, row_offsets: Int64
) -> Float64:
    """Statistics of one group, (n_requests, n_members)."""
    n_requests, n_members = len(slots), len(group.members)
    n_tokens = int(row_offsets[-1])
    # Member by member, as so many requests one after the other.
    states = group.states[slots].swapaxes(0, 1).reshape(n_members * n_requests, -1)
    starts = np.arange(n_members)[:, None] * n_tokens + row_offsets[:-1]
    offsets = np.append(starts.ravel(), n_members * n_tokens)
    if group.aggregator.n_columns == 1:
        values = evidence.scores[group.members].reshape(-1, 1)
    else:
        values = np.concatenate([evidence.wide[int(i)] for i in group.members])
    states, statistics = group.aggregator.update(states, values, offsets)
    per_member = states.reshape(n_members, n_requests, -1)
    group.states[slots] = per_member.swapaxes(0, 1)
    return statistics.reshape(n_members, n_requests).T
