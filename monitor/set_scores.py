"""A detector set that scores requests, and what several say of one step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitor.records import StepBatch
from monitor.scoring import ScoredRows
from monitor.shadow import ScoreShadow
from monitor.watch import Watch
from probes.bank import ProjectionBank


@dataclass(slots=True)
class ShadowTally:
    """
    What a set said while it was the shadow. Counters: they only rise.

    Attributes:
        n_requests: Finished requests of which it scored every token.

        n_requests_flagged: Those among them that it would have flagged.

        n_flagged_live: Those among them that the live set flagged.

        n_abstentions: Those among them that it had no answer for.

        n_flags: Flags that it would have raised, by detector.
    """

    n_flags: dict[str, int]
    n_requests: int = 0
    n_requests_flagged: int = 0
    n_flagged_live: int = 0
    n_abstentions: int = 0

    def copy(self) -> "ShadowTally":
        """Return one that does not change."""
        return replace(self, n_flags=dict(self.n_flags))


@dataclass(slots=True, kw_only=True)
class WatchedSet:
    """
    A detector set that scores requests.

    Attributes:
        digest: Of its bundle.

        names: Its detectors, in order.

        n_requests: Live requests that are its own, the shadow's not counted.

        tally: Of the time when it was the shadow.

        score_shadow: What it said of the token in each KV slot.
    """

    digest: str
    names: tuple[str, ...]
    bank: ProjectionBank
    watch: Watch
    tally: ShadowTally
    score_shadow: ScoreShadow
    n_requests: int = 0

    @property
    def d_models(self) -> dict[str, int]:
        """By hook point, the width of the activations that it reads."""
        return {h: self.bank.weights[h].shape[1] for h in self.bank.hook_points}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetScores:
    """
    What the sets said of each row of a step.

    Attributes:
        fates: uint8 of shape (n_rows,); under the set of the row's request.

        owners: int64 of shape (n_requests,); the number of each request's set.

        each: By a set's number, its scores of all rows.

        request_of_row: int64 of shape (n_rows,).
    """

    fates: NDArray[np.uint8]
    owners: NDArray[np.int64]
    each: Mapping[int, ScoredRows]
    request_of_row: NDArray[np.int64]

    @property
    def has_evidence(self) -> bool:
        """Whether any set has something to say of any row."""
        return any(len(one.rows) for one in self.each.values())

    def without(self, repeated: NDArray[np.bool_]) -> "SetScores":
        """Leave out the rows that are *repeated* (n_rows,)."""
        if not repeated.any():
            return self
        each = {number: one.without(repeated) for number, one in self.each.items()}
        return replace(self, each=each, fates=fates_of(each, self._owner_of_row()))

    def of(self, number: int) -> ScoredRows:
        """What a set says of the rows of its own requests."""
        if len(self.each) == 1:
            return self.each[number]
        return self.each[number].without(self._owner_of_row() != number)

    def _owner_of_row(self) -> NDArray[np.int64]:
        return self.owners[self.request_of_row]


def fates_of(
    each: Mapping[int, ScoredRows], owner_of_row: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Each row's fate under its owner, (n_rows,)."""
    if len(each) == 1:
        (only,) = each.values()
        return only.fates
    fates = np.zeros(len(owner_of_row), dtype=np.uint8)
    for number, one in each.items():
        is_own = owner_of_row == number
        fates[is_own] = one.fates[is_own]
    return fates


def only(batch: StepBatch, places: Mapping[str, slice]) -> StepBatch:
    """Keep of *batch* the hook points of *places*, and at each these columns."""
    values = batch.activations or batch.columns
    is_all = values.keys() == places.keys() and all(
        place == slice(None)
        or (values[h].ndim == 2 and place == slice(0, values[h].shape[1]))
        for h, place in places.items()
    )
    if is_all and values.keys() == batch.squared_norms.keys():
        return batch
    kept = {
        h: values[h][:, place] if values[h].ndim == 2 else values[h]
        for h, place in places.items()
        if h in values
    }
    return replace(
        batch,
        activations=kept if batch.activations else {},
        columns={} if batch.activations else kept,
        squared_norms={h: n for h, n in batch.squared_norms.items() if h in places},
    )
