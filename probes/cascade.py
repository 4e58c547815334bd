"""Two stages: an expensive head runs only where a cheap one does not let through."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, Int64, check_array
from probes.contributions import contributions_of
from probes.detector import (
    ActivationDetector,
    Detector,
    Projection,
    check_aggregator,
    check_columns,
    check_name,
    evidence_of,
    n_columns,
)
from probes.errors import ActivationShapeError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cascade:
    """
    Evidence of the second stage, for tokens that the first does not let through.

    A token is let through where the first stage's evidence is at most *level*; it has
    the evidence *floor*. Of all others the second stage's head is evaluated, and its
    evidence counts where it is above *floor*, so that no token that was looked at
    twice is cleaner than one that was let through. (Cascades of probes: McKenzie et
    al., arXiv 2506.10805; Kramar et al., arXiv 2601.11516.)

    The columns of both stages are computed for every token: what is saved is the
    second head. Stages that read whole activations are for `ActivationCascade`.

    Attributes:
        name: Used as a label value.

        first: Of one column of evidence. Its aggregator is not used.

        second: The same.

        level: A token passes on to the second stage above it, strictly.

        floor: Evidence of a token that is let through, and the least of all.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    first: Detector
    second: Detector
    level: float
    floor: float
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"cascade {self.name!r}"
        for stage in ("first", "second"):
            _check_stage(f"{what}: {stage}", getattr(self, stage))
        check_array(f"{what}: level", np.array([self.level], np.float32), (1,))
        check_array(f"{what}: floor", np.array([self.floor], np.float32), (1,))
        check_aggregator(what, self.aggregator, 1)
        self._check_reading(what)
        both = self.first.projections + self.second.projections
        object.__setattr__(self, "projections", both)

    def head(self, columns: Float32) -> Float32:
        """The second stage's where it runs; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        return self._evidence(
            columns,
            self.first.head,
            lambda some, _: self.second.head(some),
        )

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> dict[str, float]:
        """
        What the second stage's parts said; see `probes.contributions.Contributing`.

        Nothing of a token that the first stage lets through.
        """
        check_columns(self, columns)
        width = n_columns(self.first.projections)
        judged = evidence_of(self.first, columns[:, :width], activations)
        if not judged[0, 0] > self.level:
            return {}
        said = contributions_of(self.second, columns[:, width:], activations)
        return {f"{self.second.name}: {name}": value for name, value in said.items()}

    def _check_reading(self, what: str) -> None:
        """Raise `ValueError` where a stage reads whole activations."""
        reading = [
            stage.name
            for stage in (self.first, self.second)
            if isinstance(stage, ActivationDetector)
        ]
        if reading:
            raise ValueError(
                f"{what}: expected stages of columns alone, got {reading} of whole "
                f"activations: use ActivationCascade"
            )

    def _evidence(
        self,
        columns: Float32,
        first: Callable[[Float32], Float32],
        second: Callable[[Float32, Int64], Float32],
    ) -> Float32:
        """
        Evidence of each token.

        Args:
            columns: Of both stages, (n_tokens, n_columns).

            first: Evidence from the first stage's columns of all tokens.

            second: Evidence from the second stage's columns of some, and which.
        """
        width = n_columns(self.first.projections)
        evidence = np.full((len(columns), 1), self.floor, dtype=np.float32)
        judged = first(columns[:, :width])[:, 0]
        rows = np.flatnonzero(judged > self.level)
        if len(rows):
            found = second(columns[rows, width:], rows)
            evidence[rows] = np.maximum(found, np.float32(self.floor))
        # A NaN is not above the level, and is let through by none.
        evidence[np.isnan(columns).any(axis=1) | np.isnan(judged)] = np.nan
        return evidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationCascade(Cascade):
    """
    A `Cascade` with a stage that reads whole activations, as a TopK SAE's rule does.

    The second stage is given the activations of the tokens that it looks at alone.
    """

    def head(self, columns: Float32) -> NoReturn:
        """
        Refuse: see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: Always.
        """
        check_columns(self, columns)
        raise ActivationShapeError(
            f"detector {self.name!r} expects whole activations: a stage reads them"
        )

    def head_on_activations(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Float32:
        """
        Evidence of each token; see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: The arrays do not fit.
        """
        check_columns(self, columns)
        return self._evidence(
            columns,
            lambda all_of_them: evidence_of(self.first, all_of_them, activations),
            lambda some, rows: evidence_of(
                self.second, some, {h: x[rows] for h, x in activations.items()}
            ),
        )

    def _check_reading(self, what: str) -> None:
        stages = (self.first, self.second)
        if not any(isinstance(stage, ActivationDetector) for stage in stages):
            raise ValueError(
                f"{what}: expected a stage that reads whole activations, got none: "
                f"use Cascade"
            )


def cascade_of(
    *,
    name: str,
    first: Detector,
    second: Detector,
    level: float,
    floor: float,
    aggregator: Aggregator,
) -> Cascade:
    """The `Cascade` or `ActivationCascade` of two stages, by what they read."""
    reads_all = any(isinstance(stage, ActivationDetector) for stage in (first, second))
    return (ActivationCascade if reads_all else Cascade)(
        name=name,
        first=first,
        second=second,
        level=level,
        floor=floor,
        aggregator=aggregator,
    )


def _check_stage(what: str, stage: Detector) -> None:
    if stage.aggregator.n_columns != 1:
        raise ValueError(
            f"{what}: expected a detector of one column of evidence, got "
            f"{stage.name!r} of {stage.aggregator.n_columns}"
        )
