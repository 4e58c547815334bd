"""Features of a TopK SAE, exactly: a few rows first, the whole encoder where needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32, Int64, check_array
from probes.detector import (
    Projection,
    activations_of,
    check_aggregator,
    check_columns,
    check_name,
)
from probes.encoder_rows import EncoderRows
from probes.errors import ActivationShapeError
from probes.rules import FeatureRule
from probes.sae import check_features, named_features
from probes.sae_formats.record import SAE

_MAX_VALUES = 1 << 25
"""Pre-activations held at once: 128 MiB of them, whatever d_sae is."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopKFeatureDetector:
    """
    A rule over a few features of an SAE whose features all compete.

    A feature is on only if it is among the k largest of all, so its own encoder row
    does not say whether it is; but it is never higher than ``max(pre, 0)``. Tokens
    on which the rule could not hold even with that are clean; on the others the
    whole encoder runs, on the whole activation. The outcome is the full encoder's.

    Attributes:
        name: What the features mean. Used as a label value.

        sae: The SAE, all of it.

        features: Watched features, of shape (n_watched,), int64.

        rule: As in `SAEFeatureDetector`.

        feature_weights: Of shape (n_watched,), float32; see `FeatureRule`.

        levels: Of shape (n_watched,), float32; see `FeatureRule`. Above 0 they keep
            most tokens from the encoder.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    sae: SAE
    features: Int64
    rule: str
    feature_weights: Float32
    levels: Float32
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)
    _rows: EncoderRows = field(init=False, repr=False)
    _rule: FeatureRule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"SAE detector {self.name!r}"
        check_aggregator(what, self.aggregator, 1)
        check_array(f"{what}: features", self.features, ("n_watched",), np.int64)
        check_features(self.name, self.sae, self.features.tolist())
        check_array(
            f"{what}: feature_weights", self.feature_weights, self.features.shape
        )
        rows = EncoderRows.of(self.sae, self.features)
        rule = FeatureRule(
            kind=self.rule, weights=self.feature_weights, levels=self.levels
        )
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_rule", rule)
        object.__setattr__(self, "projections", rows.projections())

    @classmethod
    def from_sae(
        cls,
        sae: SAE,
        *,
        name: str,
        features: Sequence[int],
        aggregator: Aggregator,
        rule: str = "any",
        feature_weights: Sequence[float] | None = None,
        levels: Sequence[float] | None = None,
    ) -> Self:
        """
        Watch *features* of *sae*, each with weight 1 and level 0 unless said.

        Raises:
            ValueError: A feature is not in the SAE, or is there twice, or weights or
                levels are not one a feature.
        """
        n = len(features)
        weights = [1.0] * n if feature_weights is None else feature_weights
        return cls(
            name=name,
            sae=sae,
            features=np.array(features, dtype=np.int64),
            rule=rule,
            feature_weights=np.array(weights, dtype=np.float32),
            levels=np.array([0.0] * n if levels is None else levels, dtype=np.float32),
            aggregator=aggregator,
        )

    def head(self, columns: Float32) -> NoReturn:
        """
        Refuse: columns do not decide; see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: Always, or because *columns* do not fit.
        """
        check_columns(self, columns)
        raise ActivationShapeError(
            f"detector {self.name!r} expects whole activations: of a "
            f"{self.sae.activation} SAE, columns alone do not say which features are on"
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
        rows = activations_of(self.sae.hook_points, self.sae.d_model, activations)
        if len(rows) != len(columns):
            raise ActivationShapeError(
                f"detector {self.name!r} expects as many activations as columns, "
                f"got {len(rows)} and {len(columns)}"
            )
        candidates = np.flatnonzero(self.may_hold(columns, rows))
        evidence = np.zeros((len(columns), 1), dtype=np.float32)
        evidence[candidates] = self._rule.evidence(self._watched(rows[candidates]))
        return evidence

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> dict[str, float]:
        """By feature; see `probes.contributions.Contributing`."""
        check_columns(self, columns)
        said = self._rule.contributions(self.features_on(activations)[0])
        return named_features(self.features, said)

    def features_on(self, activations: Mapping[str, Float32]) -> Float32:
        """The watched features of each token, (n_tokens, n_watched)."""
        return self._watched(
            activations_of(self.sae.hook_points, self.sae.d_model, activations)
        )

    def _watched(self, rows: Float32) -> Float32:
        """Of the whole encoding of *rows*, the watched features."""
        features = np.empty((len(rows), len(self.features)), dtype=np.float32)
        # An SAE that is wide takes its tokens a few at a time.
        n_at_once = max(1, _MAX_VALUES // self.sae.d_sae)
        for start in range(0, len(rows), n_at_once):
            some = slice(start, start + n_at_once)
            features[some] = self.sae.encode(rows[some])[:, self.features]
        return features

    def may_hold(self, columns: Float32, activations: Float32) -> NDArray[np.bool_]:
        """Which tokens the whole encoder has to look at, (n_tokens,)."""
        if self.sae.is_raw and self.rule == "weighted_sum":
            # A value below 0 is kept, and no bound says that it is not there.
            return np.ones(len(columns), dtype=np.bool_)
        bounds = np.maximum(self._rows.pre_activations(columns), 0)
        return self._rule.may_hold(bounds, self._rounding(activations))

    def _rounding(self, activations: Float32) -> Float32:
        """
        How far two float32 sums of the same products can be apart, (n_tokens, k).

        d units in the last place of |w| |x| (Higham 2002, section 3.1), for the rows'
        product and the encoder's; a normalised x has length sqrt(d).
        """
        rows = activations.astype(np.float64)
        d = rows.shape[1]
        lengths = np.linalg.norm(rows, axis=1)
        if self.sae.input_norm != "none":
            lengths = np.full(len(rows), np.sqrt(d))
        widths = np.linalg.norm(self._rows.weight.astype(np.float64), axis=1)
        unit = float(np.finfo(np.float32).eps)
        slack = 2 * d * unit * lengths[:, None] * widths
        slack += unit * np.abs(self._rows.bias)
        clipped: Float32 = np.minimum(slack, FLOAT32_MAX).astype(np.float32)
        return clipped
