"""Rules over SAE features of many detectors, evaluated at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from probes.arrays import Float32, Int64
from probes.bank import ProjectionBank
from probes.detector import Detector
from probes.encoder_rows import clipped
from probes.rules import rule_evidence
from probes.sae import SAEFeatureDetector, rectify


@dataclass(frozen=True, slots=True, eq=False)
class _Rules:
    """Rules of one kind over as many features each: (n_members, n_watched)."""

    kind: str
    members: Int64
    watched: Int64
    weights: Float32
    levels: Float32


class FeatureStack:
    """
    SAE detectors whose features are each decided by one column of their own.

    The same numbers as each `SAEFeatureDetector.head`, in a few calls for all of them.
    """

    def __init__(
        self, bank: ProjectionBank, members: Sequence[tuple[int, SAEFeatureDetector]]
    ) -> None:
        self._places: dict[str, tuple[Int64, Int64]] = {}
        n_rows = 0
        pairs: dict[str, list[tuple[int, int]]] = {}
        rules: dict[tuple[str, int], list[tuple[int, Int64, SAEFeatureDetector]]] = {}
        for index, detector in members:
            (place,) = bank.layout[detector.name]
            k = len(detector.bias)
            pairs.setdefault(place.hook_point, []).extend(
                (n_rows + i, place.columns.start + i) for i in range(k)
            )
            key = (detector.rule, len(detector.watched))
            rules.setdefault(key, []).append(
                (index, detector.watched + n_rows, detector)
            )
            n_rows += k
        for hook_point, found in pairs.items():
            rows, columns = np.array(found, dtype=np.int64).T
            self._places[hook_point] = (rows, columns)
        self._n_rows = n_rows
        detectors = [detector for _, detector in members]
        self._bias, self._gates, self._gains, self._shifts = (
            np.concatenate([getattr(d, name) for d in detectors] or [np.empty(0)])
            for name in ("bias", "gates", "gains", "shifts")
        )
        self._rules = [
            _Rules(
                kind,
                np.array([index for index, _, _ in some]),
                np.stack([watched for _, watched, _ in some]),
                np.stack([d.feature_weights for _, _, d in some]),
                np.stack([d.levels for _, _, d in some]),
            )
            for (kind, _), some in rules.items()
        ]

    @staticmethod
    def takes(detector: Detector) -> TypeGuard[SAEFeatureDetector]:
        """Whether *detector* can be a member."""
        return (
            isinstance(detector, SAEFeatureDetector)
            and len(detector.hook_points) == 1
            and detector.input_norm == "none"
            and not detector.has_competition
        )

    def write(self, scores: Float32, columns: Mapping[str, Float32]) -> None:
        """Write each member's evidence into its row of *scores*."""
        if not self._n_rows:
            return
        products = np.empty((scores.shape[1], self._n_rows))
        for hook_point, (rows, places) in self._places.items():
            products[:, rows] = columns[hook_point][:, places]
        pre = clipped(products + self._bias)
        features = rectify(pre, self._gates, self._gains, self._shifts)
        for rules in self._rules:
            watched = features[:, rules.watched]
            found = rule_evidence(rules.kind, watched, rules.weights, rules.levels)
            scores[rules.members] = found.T
