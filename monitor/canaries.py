"""What came of canary requests: prompts whose columns are known in advance."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from monitor.records import StepBatch
from probes.bank import ProjectionBank
from probes.canaries import Canary, compare


class CanaryVerdict(StrEnum):
    """How canary requests came out."""

    PASSED = "passed"
    NOT_ANSWERED = "not_answered"
    """The server did not answer them: nothing is known of what is read."""
    NOT_SEEN = "not_seen"
    """It answered, and no row of them came."""
    INCOMPLETE = "incomplete"
    """Rows are missing, or the tap did not write them."""
    TOKENS_DIFFER = "tokens_differ"
    """Rows came of other tokens than were sent."""
    COLUMNS_DIFFER = "columns_differ"
    """Another model, hook point or arithmetic is being read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """A verdict, one line that says why, and `probes.canaries.compare`'s difference."""

    verdict: CanaryVerdict
    detail: str
    difference: float = float("nan")

    @classmethod
    def not_answered(cls, problem: str) -> "CanaryResult":
        """Return what came of canaries that the server did not answer."""
        return cls(verdict=CanaryVerdict.NOT_ANSWERED, detail=problem)

    @property
    def is_blind(self) -> bool:
        """Whether what the monitor sees can not be trusted."""
        fine = (CanaryVerdict.PASSED, CanaryVerdict.NOT_ANSWERED)
        return self.verdict not in fine


class CanaryLook:
    """
    Collects the rows of one run of *canaries*, columns of *bank*.

    Their requests are named by *name*, which no other request contains; vLLM puts
    something before and behind.

    Attributes:
        requests: Which canary to send, by the request's id.
    """

    def __init__(
        self, canaries: Sequence[Canary], name: str, bank: ProjectionBank
    ) -> None:
        self._canaries = tuple(canaries)
        self.requests = {f"{name}-{i:04d}": c for i, c in enumerate(canaries)}
        self._bank = bank
        self._found = [_Found(canary) for canary in canaries]

    @property
    def is_complete(self) -> bool:
        """Whether a row of every token has come."""
        return all(found.is_seen.all() for found in self._found)

    def observe(self, batch: StepBatch) -> None:
        """Note the canaries' rows in *batch*, if it is of activations or the bank."""
        if not batch.activations and batch.bank_digest != self._bank.digest:
            return
        for i, request_id in enumerate(batch.request_ids):
            for found, name in zip(self._found, self.requests, strict=True):
                if name in request_id:
                    start, end = batch.row_offsets[i : i + 2].tolist()
                    found.add(batch, self._bank, slice(start, end), i)

    def result(self, tolerance: float) -> CanaryResult:
        """Compare what came with what has to; at most *tolerance* apart."""
        n_tokens = sum(len(canary.token_ids) for canary in self._canaries)
        n_seen = sum(int(found.is_seen.sum()) for found in self._found)
        if not n_seen:
            return CanaryResult(
                verdict=CanaryVerdict.NOT_SEEN,
                detail=f"none of {n_tokens} tokens of canaries came",
            )
        if any(found.n_wrong for found in self._found):
            n_wrong = sum(found.n_wrong for found in self._found)
            return CanaryResult(
                verdict=CanaryVerdict.TOKENS_DIFFER,
                detail=f"{n_wrong} of {n_tokens} rows are of other tokens than sent",
            )
        n_written = sum(found.n_written for found in self._found)
        if n_written < n_tokens:
            return CanaryResult(
                verdict=CanaryVerdict.INCOMPLETE,
                detail=f"{n_written} of {n_tokens} tokens of canaries came",
            )
        if not all(found.is_finite for found in self._found):
            difference = float("inf")
        else:
            difference = compare(self._canaries, [f.canary() for f in self._found])
        detail = f"columns are {difference:.2g} apart, at most {tolerance:.2g} allowed"
        is_fine = difference <= tolerance
        return CanaryResult(
            verdict=CanaryVerdict.PASSED if is_fine else CanaryVerdict.COLUMNS_DIFFER,
            detail=detail,
            difference=difference,
        )


class _Found:
    """The rows that came of one canary."""

    def __init__(self, canary: Canary) -> None:
        n = len(canary.token_ids)
        self._tokens = canary.token_ids
        self.is_seen = np.zeros(n, dtype=np.bool_)
        self.n_wrong = 0
        self._columns = {h: np.zeros_like(c) for h, c in canary.columns.items()}
        self._norms = {h: np.full(n, -1.0, np.float32) for h in canary.columns}

    def add(
        self, batch: StepBatch, bank: ProjectionBank, rows: slice, index: int
    ) -> None:
        first = int(batch.first_positions[index])
        # What the model said is no canary's.
        n = min(rows.stop - rows.start, len(self._tokens) - first)
        if n <= 0:
            return
        kept, at = slice(rows.start, rows.start + n), slice(first, first + n)
        sent: NDArray[np.int32] = np.array(self._tokens[at], dtype=np.int32)
        self.n_wrong += int((batch.token_ids[kept] != sent).sum())
        self.is_seen[at] = True
        columns, norms = dict(batch.columns), dict(batch.squared_norms)
        if batch.activations:
            whole = {h: values[kept] for h, values in batch.activations.items()}
            columns, norms = bank.project(whole)
        else:
            columns = {h: values[kept] for h, values in columns.items()}
            norms = {h: values[kept] for h, values in norms.items()}
        for hook_point in self._columns:
            if hook_point in columns:
                self._columns[hook_point][at] = columns[hook_point]
                self._norms[hook_point][at] = norms[hook_point]

    @property
    def n_written(self) -> int:
        """Tokens that every tap wrote."""
        is_written = self.is_seen.copy()
        for norms in self._norms.values():
            is_written &= ~(norms < 0)
        return int(is_written.sum())

    @property
    def is_finite(self) -> bool:
        arrays = [*self._columns.values(), *self._norms.values()]
        return all(bool(np.isfinite(values).all()) for values in arrays)

    def canary(self) -> Canary:
        return Canary(
            token_ids=self._tokens, columns=self._columns, squared_norms=self._norms
        )
