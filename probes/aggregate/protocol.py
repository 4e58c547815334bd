# Rule 1: `update()` is pure. It returns the new state; the old one is as it was.
#
# Rule 2: no Python loop over tokens, except in the plain twins `aggregate()`.
#
# Rule 3: however a request is cut into segments, the statistic at its end is the
# same. A segment without rows leaves a request's state as it was.
#
# Rule 4: requests do not touch each other, not by rounding either: no sum runs over
# the rows of two of them, since one huge number would drown the other's.
"""What every aggregator is: token evidence to a request statistic, online."""

from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32, Float64, Int64

TOKENS = ("all", "answer")
"""Whose evidence an aggregator can count."""


@runtime_checkable
class Aggregator(Protocol):
    """
    One number a request, from the evidence of its tokens in order.

    `tests/contract/test_aggregators.py` holds every aggregator to this.
    """

    @property
    def name(self) -> str:
        """As in a bundle and a recipe."""
        ...

    @property
    def n_columns(self) -> int:
        """m, how many columns of evidence a token has: 1, or some a head."""
        ...

    @property
    def tokens(self) -> str:
        """
        Whose evidence counts: "all", or "answer", which is the prompt's last token
        and those after it. The caller leaves out the others: see `is_answer`.
        """
        ...

    @property
    def is_monotone(self) -> bool:
        """
        Whether the statistic never falls as tokens come.

        If so a request may be flagged while it runs; otherwise only at its end.
        """
        ...

    def start(self, n_requests: int) -> Float64:
        """State of shape (n_requests, state_size) before any token."""
        ...

    def update(
        self, state: Float64, evidence: Float32, row_offsets: Int64
    ) -> tuple[Float64, Float64]:
        """
        Take in one segment of tokens of each request.

        Args:
            state: Of shape (n_requests, state_size), from `start` or `update`.

            evidence: Of shape (n_tokens, n_columns), float32, finite; segment by
                segment.

            row_offsets: Of shape (n_requests + 1,), int64; request i has the rows
                from ``row_offsets[i]`` up to ``row_offsets[i + 1]``.

        Returns:
            The new state, and the statistic so far of shape (n_requests,),
            float64; -inf for a request without any token yet.

        Raises:
            ActivationShapeError: The arrays do not fit together, or evidence is
                not finite. *state* is as it was.
        """
        ...

    def aggregate(self, evidence: Float32) -> float:
        """The statistic of one request from all its evidence, the plain twin."""
        ...

    def token_scores(self, evidence: Float32) -> Float32:
        """One number a token, (n_tokens,), to show where a request is suspicious."""
        ...

    def to_json(self) -> dict[str, str | float]:
        """Name and parameters; `aggregator_from_json` is the inverse."""
        ...


def is_answer(positions: Int64, n_prompt_tokens: Int64) -> NDArray[np.bool_]:
    """
    Return which tokens the model answers at, (n_tokens,).

    The last token of the prompt is one: there the model has read everything, and
    decides on its first word.
    """
    return positions >= n_prompt_tokens - 1


@dataclass(frozen=True, slots=True)
class BaseAggregator:
    """What all of them share: whose evidence counts, and how they are written."""

    tokens: str = field(default="all", kw_only=True)

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise ValueError(
                f"tokens: expected one of {list(TOKENS)}, got {self.tokens!r}"
            )

    @property
    def n_columns(self) -> int:
        return 1

    def token_scores(self, evidence: Float32) -> Float32:
        return evidence[:, 0]

    def to_json(self) -> dict[str, str | float]:
        data: dict[str, str | float] = {"name": self.name}
        for one in fields(self):
            value = getattr(self, one.name)
            if (one.name, value) != ("tokens", TOKENS[0]):
                data[one.name] = value
        return data


def check_count(name: str, value: int, most: int) -> None:
    """Raise `ValueError` unless *value* is from 1 to *most*, as a state must be."""
    if not 1 <= value <= most:
        raise ValueError(f"{name}: expected 1 to {most}, got {value}")
