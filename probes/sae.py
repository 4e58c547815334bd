"""SAE features as a detector: the watched encoder rows, the activation, a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32, Float64, Int64, check_array
from probes.detector import (
    Projection,
    check_aggregator,
    check_columns,
    check_name,
)
from probes.encoder_rows import EncoderRows
from probes.rules import FeatureRule
from probes.sae_formats.record import INPUT_NORMS, SAE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAEFeatureDetector:
    """
    A rule over a few features, from their own encoder rows alone, exactly.

    With ``pre`` of each watched row, its feature is

        f = max(gain * pre + shift, 0)  where  pre > gate,  else 0

    which is a ReLU with gate 0, gain 1 and shift 0; a JumpReLU with its threshold as
    the gate; and a gated SAE's feature with gate -b_gate, gain exp(r_mag) and shift
    b_mag. Rows of one group compete: only the largest is on (groupmax). TopK needs
    every feature; see `probes.topk`.

    Attributes:
        name: What the features mean. Used as a label value.

        hook_points: Where the SAE reads, one a source.

        encoder: Encoder rows (k, n_sources * d_model), float32.

        bias: Their biases of shape (k,), float32.

        input_norm: ``"none"``, ``"rms"`` or ``"layer_norm"``, as in `SAE`.

        norm_eps: Of layer_norm.

        gates: Of shape (k,), float32.

        gains: Of shape (k,), float32.

        shifts: Of shape (k,), float32.

        features: Which features of the SAE the rows are, of shape (k,), int64.

        groups: Rows with the same number compete, of shape (k,), int64, rising.

        watched: Rows that the rule reads, of shape (n_watched,), int64; the others
            are only there to compete.

        rule: ``"weighted_sum"``, ``"any"``, ``"all"`` or ``"count"``.

        feature_weights: Of shape (n_watched,), float32; see `FeatureRule`.

        levels: Of shape (n_watched,), float32; see `FeatureRule`.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_points: tuple[str, ...]
    encoder: Float32
    bias: Float32
    input_norm: str
    norm_eps: float
    gates: Float32
    gains: Float32
    shifts: Float32
    features: Int64
    groups: Int64
    watched: Int64
    rule: str
    feature_weights: Float32
    levels: Float32
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)
    has_competition: bool = field(init=False, repr=False)
    _rows: EncoderRows = field(init=False, repr=False)
    _rule: FeatureRule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"SAE detector {self.name!r}"
        check_aggregator(what, self.aggregator, 1)
        check_array(f"{what}: encoder", self.encoder, ("k", "d_in"))
        k = len(self.encoder)
        for key in ("bias", "gates", "gains", "shifts"):
            check_array(f"{what}: {key}", getattr(self, key), (k,))
        for key in ("features", "groups"):
            check_array(f"{what}: {key}", getattr(self, key), (k,), np.int64)
        check_array(f"{what}: watched", self.watched, ("n_watched",), np.int64)
        check_array(
            f"{what}: feature_weights", self.feature_weights, self.watched.shape
        )
        self._check_indices(what)
        rows = EncoderRows(
            hook_points=self.hook_points,
            weight=self.encoder,
            bias=self.bias,
            input_norm=self.input_norm,
            norm_eps=self.norm_eps,
        )
        rule = FeatureRule(
            kind=self.rule, weights=self.feature_weights, levels=self.levels
        )
        has_competition = bool((np.diff(self.groups) == 0).any())
        object.__setattr__(self, "has_competition", has_competition)
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
        rule: str = "weighted_sum",
        feature_weights: Sequence[float] | None = None,
        levels: Sequence[float] | None = None,
    ) -> Self:
        """
        Watch *features* of *sae*, each with weight 1 and level 0 unless said.

        Raises:
            ValueError: A feature is not in the SAE, or is there twice, weights or
                levels are not one a feature, or the SAE is a TopK one.
        """
        check_features(name, sae, features)
        if not sae.is_exact_on_subset:
            raise ValueError(
                f"SAE detector {name!r}: activation: expected one that acts on each "
                f"feature alone, got {sae.activation!r}: a feature is on only if it "
                f"is among the k largest of all, so watching a few would fire far "
                f"too often"
            )
        index = np.array(
            sorted({rival for f in features for rival in sae.group_of(f)}),
            dtype=np.int64,
        )
        gates, gains, shifts = _parameters(sae, index)
        rows = EncoderRows.of(sae, index)
        return cls(
            name=name,
            hook_points=rows.hook_points,
            encoder=rows.weight,
            bias=rows.bias,
            input_norm=rows.input_norm,
            norm_eps=rows.norm_eps,
            gates=gates,
            gains=gains,
            shifts=shifts,
            features=index,
            groups=np.array([sae.group_of(int(f)).start for f in index]),
            watched=np.searchsorted(index, np.array(features, dtype=np.int64)),
            rule=rule,
            feature_weights=_numbers(feature_weights, len(features), 1.0),
            levels=_numbers(levels, len(features), 0.0),
            aggregator=aggregator,
        )

    def head(self, columns: Float32) -> Float32:
        """Normalise, activate, compete, judge; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        return self._rule.evidence(self.features_on(columns))

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> dict[str, float]:
        """By feature; see `probes.contributions.Contributing`."""
        check_columns(self, columns)
        said = self._rule.contributions(self.features_on(columns)[0])
        return named_features(self.features[self.watched], said)

    def features_on(self, columns: Float32) -> Float32:
        """The watched features of each token, (n_tokens, n_watched)."""
        pre = self._rows.pre_activations(columns)
        features = rectify(pre, self.gates, self.gains, self.shifts)
        return self._winners(features)[:, self.watched]

    def _winners(self, features: Float32) -> Float32:
        """*features* (n_tokens, k), 0 where another of the group is larger."""
        if not self.has_competition:
            return features
        starts = np.flatnonzero(np.diff(self.groups, prepend=-1))
        sizes = np.diff(starts, append=len(self.groups))
        best = np.maximum.reduceat(features, starts, axis=1)
        is_best = ~(features < np.repeat(best, sizes, axis=1))
        # Of equal ones the first: a later one has an equal before it in its group.
        n_before = is_best.cumsum(axis=1) - is_best
        first = np.repeat(n_before[:, starts], sizes, axis=1)
        return np.where(is_best & (n_before == first), features, np.float32(0))

    def _check_indices(self, what: str) -> None:
        k = len(self.encoder)
        if (
            not len(self.watched)
            or not ((self.watched >= 0) & (self.watched < k)).all()
        ):
            raise ValueError(f"{what}: watched: expected rows from 0 to {k - 1}")
        if (self.groups < 0).any() or (np.diff(self.groups) < 0).any():
            raise ValueError(f"{what}: groups: expected rising numbers of at least 0")
        if self.input_norm not in INPUT_NORMS:
            raise ValueError(
                f"{what}: input_norm: expected one of {list(INPUT_NORMS)}, "
                f"got {self.input_norm!r}"
            )
        n_sources = len(self.hook_points)
        if not n_sources or self.encoder.shape[1] % n_sources:
            raise ValueError(
                f"{what}: encoder: expected rows for {n_sources} sources, "
                f"got {self.encoder.shape}"
            )
        if n_sources > 1 and self.input_norm != "none":
            raise ValueError(f"{what}: input_norm: expected 'none' of several sources")


def rectify(pre: Float32, gates: Float32, gains: Float32, shifts: Float32) -> Float32:
    """
    Features of shape (n_tokens, k) that no other competes with, from *pre*.

    ``max(gains pre + shifts, 0)`` where ``pre > gates``, else 0.
    """
    scaled = gains * pre.astype(np.float64) + shifts
    # Not "above the gate": a NaN must stay one, not look like a feature off.
    on = np.where(pre <= gates, 0, np.maximum(scaled, 0))
    features: Float32 = np.minimum(on, FLOAT32_MAX).astype(np.float32)
    return features


def named_features(features: Int64, said: Float64) -> dict[str, float]:
    """What each of *features* (k,) *said* (k,), by its name; 0 is left out."""
    return {
        f"feature {feature}": value
        for feature, value in zip(features.tolist(), said.tolist(), strict=True)
        if value
    }


def check_features(name: str, sae: SAE, features: Sequence[int]) -> None:
    """Raise `ValueError` unless *features* are different ones of *sae*."""
    outside = [f for f in features if not 0 <= f < sae.d_sae]
    if not features or outside or len(set(features)) < len(features):
        raise ValueError(
            f"SAE detector {name!r}: features: expected different indices "
            f"from 0 to {sae.d_sae - 1}, got {list(features)}"
        )


def _parameters(sae: SAE, index: Int64) -> tuple[Float32, Float32, Float32]:
    """Gates, gains and shifts of the rows *index*."""
    zeros, ones = np.zeros(len(index), np.float32), np.ones(len(index), np.float32)
    if sae.activation == "jumprelu":
        assert sae.threshold is not None
        return sae.threshold[index], ones, zeros
    if sae.activation == "gated":
        assert sae.b_gate is not None
        assert sae.r_mag is not None
        assert sae.b_mag is not None
        return -sae.b_gate[index], np.exp(sae.r_mag[index]), sae.b_mag[index]
    return zeros, ones, zeros


def _numbers(given: Sequence[float] | None, n: int, usual: float) -> Float32:
    return np.array([usual] * n if given is None else given, dtype=np.float32)
