# Sixty-four detectors are sixty-four calls of everything, if each has an array of its
# own. So the evidence of all tokens under all detectors is one matrix, a row each,
# and only what has several columns (attention heads) is kept beside it.
"""The evidence of a step's tokens, under every detector of a set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float32, Float64, Int64
from probes.bank import ProjectionBank
from probes.detector import Detector, evidence_of
from probes.linear import LinearProbe
from probes.sae import SAEFeatureDetector
from probes.sae_stack import FeatureStack


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """
    What every detector says of each token.

    Attributes:
        scores: float32 (n_detectors, n_tokens). One number a token: the evidence
            itself where it has one column, else what a record shows of it.

        wide: By the index of a detector, its evidence (n_tokens, m) where m > 1.
    """

    scores: Float32
    wide: Mapping[int, Float32]

    @classmethod
    def of(cls, detectors: Sequence[Detector], each: Sequence[Float32]) -> Self:
        """Join the evidence (n_tokens, m) of *each* of *detectors*."""
        scores = np.empty((len(each), len(each[0])), dtype=np.float32)
        wide: dict[int, Float32] = {}
        for index, (detector, found) in enumerate(zip(detectors, each, strict=True)):
            _put(scores, wide, index, detector, found)
        return cls(scores, wide)

    def rows(self, index: Int64 | NDArray[np.bool_] | slice) -> "Evidence":
        """The evidence of some tokens."""
        wide = {i: found[index] for i, found in self.wide.items()}
        return Evidence(self.scores[:, index], wide)

    def is_finite(self) -> NDArray[np.bool_]:
        """Which tokens have finite evidence under every detector, (n_tokens,)."""
        # One pass: a float64 sum of float32 numbers is finite where each of them is.
        sums: Float64 = np.add.reduce(self.scores, axis=0, dtype=np.float64)
        found = np.isfinite(sums)
        for one in self.wide.values():
            found &= np.isfinite(one).all(axis=1)
        return found


class Scorer:
    """Heads of a detector set, on the columns of its bank."""

    def __init__(self, bank: ProjectionBank, detectors: Sequence[Detector]) -> None:
        self._bank = bank
        self._detectors = tuple(detectors)
        # A linear probe's evidence is its column: many of them are one copy.
        self._plain: dict[str, tuple[Int64, Int64]] = {}
        self._others: list[tuple[int, Detector]] = []
        plain: dict[str, list[tuple[int, int]]] = {}
        stacked: list[tuple[int, SAEFeatureDetector]] = []
        for index, detector in enumerate(self._detectors):
            if isinstance(detector, LinearProbe):
                column = bank.layout[detector.name][0].columns.start
                plain.setdefault(detector.hook_point, []).append((index, column))
            elif FeatureStack.takes(detector):
                stacked.append((index, detector))
            else:
                self._others.append((index, detector))
        self._stack = FeatureStack(bank, stacked)
        for hook_point, pairs in plain.items():
            indices, columns = np.array(pairs, dtype=np.int64).T
            self._plain[hook_point] = (indices, columns)

    def evidence(
        self,
        columns: Mapping[str, Float32],
        squared_norms: Mapping[str, Float32],
        activations: Mapping[str, Float32],
    ) -> Evidence:
        """
        Evidence of each token, as each detector's head gives it.

        Args:
            columns: By hook point, (n_tokens, K_h), as `ProjectionBank.project`.

            squared_norms: By hook point, (n_tokens,).

            activations: By hook point, (n_tokens, d_model); empty where only columns
                are at hand.
        """
        n_tokens = len(next(iter(squared_norms.values())))
        scores = np.empty((len(self._detectors), n_tokens), dtype=np.float32)
        wide: dict[int, Float32] = {}
        for hook_point, (indices, places) in self._plain.items():
            scores[indices] = columns[hook_point].T[places]
        self._stack.write(scores, columns)
        for index, detector in self._others:
            own = self._bank.columns_of(detector.name, columns, squared_norms)
            found = evidence_of(detector, own, activations)
            _put(scores, wide, index, detector, found)
        return Evidence(scores, wide)


def _put(
    scores: Float32,
    wide: dict[int, Float32],
    index: int,
    detector: Detector,
    found: Float32,
) -> None:
    if found.shape[1] == 1:
        scores[index] = found[:, 0]
    else:
        scores[index] = detector.aggregator.token_scores(found)
        wide[index] = found
