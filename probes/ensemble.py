"""Several linear probes, each on a scale of its own, as one number."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, Float64, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name
from probes.relu import as_evidence

COMBINATIONS = ("mean", "max", "logistic")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ensemble:
    """
    Linear members at several hook points, standardised, then combined.

    With c_i the column of member i:

        z_i = (c_i - mean_i) / deviation_i

    and the evidence is their mean, their maximum, or a logistic regression on them,
    member_weights . z + bias (multi-layer ensembles, Nordby et al., arXiv 2604.13386:
    a direction turns from layer to layer, and no one layer is best everywhere).

    >>> from probes.aggregate import Max
    >>> from probes.detector import score
    >>> hooks = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
    >>> ensemble = Ensemble(
    ...     name="deception", hook_points=hooks, combination="max", aggregator=Max(),
    ...     weights=np.array([[1, 0], [0, 1]], dtype=np.float32),
    ...     biases=np.zeros(2, dtype=np.float32),
    ...     means=np.array([1, 0], dtype=np.float32),
    ...     deviations=np.array([1, 8], dtype=np.float32),
    ... )
    >>> x = np.array([[3, 4]], dtype=np.float32)
    >>> score(ensemble, dict.fromkeys(hooks, x)).tolist()
    [[2.0]]

    Attributes:
        name: What the members detect. Used as a label value.

        hook_points: Where each member reads; one may be there more than once.

        weights: A direction for each member, (n_members, d_model), float32.

        biases: Of the members, (n_members,), float32.

        means: Of the members' columns on negative tokens, (n_members,), float32.

        deviations: Of these, (n_members,), float32, positive.

        combination: ``mean``, ``max`` or ``logistic``.

        aggregator: Token evidence to a request statistic.

        member_weights: Of shape (n_members,), float32; for ``logistic`` only.

        bias: Added to the weighted sum; for ``logistic`` only.
    """

    name: str
    hook_points: tuple[str, ...]
    weights: Float32
    biases: Float32
    means: Float32
    deviations: Float32
    combination: str
    aggregator: Aggregator
    member_weights: Float32 | None = None
    bias: float = 0.0
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"ensemble {self.name!r}"
        n = len(self.hook_points)
        if n < 2:
            raise ValueError(f"{what}: hook_points: expected two or more, got {n}")
        check_array(f"{what}: weights", self.weights, (n, "d_model"))
        check_array(f"{what}: biases", self.biases, (n,))
        check_array(f"{what}: means", self.means, (n,))
        check_array(f"{what}: deviations", self.deviations, (n,))
        if not (self.deviations > 0).all():
            raise ValueError(f"{what}: deviations: expected positive numbers")
        self._check_combination(what)
        check_aggregator(what, self.aggregator, 1)
        projections = tuple(
            Projection(hook_point=hook_point, weight=weight[None, :], bias=bias)
            for hook_point, weight, bias in zip(
                self.hook_points, self.weights, self.biases[:, None], strict=True
            )
        )
        object.__setattr__(self, "projections", projections)

    def head(self, columns: Float32) -> Float32:
        """Members combined; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        standard = self._standard(columns)
        if self.member_weights is not None:
            combined = standard @ self.member_weights.astype(np.float64) + self.bias
        elif self.combination == "mean":
            combined = standard.mean(axis=1)
        else:
            combined = standard.max(axis=1)
        return as_evidence(combined[:, None])

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> dict[str, float]:
        """
        By member, the bias not counted; see `probes.contributions.Contributing`.

        Of a maximum the one member that decided.
        """
        check_columns(self, columns)
        standard = self._standard(columns)[0]
        if self.member_weights is not None:
            said = standard * self.member_weights.astype(np.float64)
        elif self.combination == "mean":
            said = standard / len(standard)
        else:
            is_highest = np.arange(len(standard)) == np.argmax(standard)
            said = np.where(is_highest, standard, 0.0)
        names = [
            hook if self.hook_points.count(hook) == 1 else f"{hook}, member {i}"
            for i, hook in enumerate(self.hook_points)
        ]
        return dict(zip(names, said.tolist(), strict=True))

    def _standard(self, columns: Float32) -> Float64:
        """z of each token and member, (n_tokens, n_members)."""
        standard: Float64 = columns.astype(np.float64) - self.means
        standard /= self.deviations.astype(np.float64)
        return standard

    def _check_combination(self, what: str) -> None:
        if self.combination not in COMBINATIONS:
            raise ValueError(
                f"{what}: combination: expected one of {list(COMBINATIONS)}, "
                f"got {self.combination!r}"
            )
        if (self.combination == "logistic") != (self.member_weights is not None):
            raise ValueError(
                f"{what}: member_weights: expected them for 'logistic' and no other "
                f"combination, got {self.combination!r}"
            )
        if self.member_weights is not None:
            shape = (len(self.hook_points),)
            check_array(f"{what}: member_weights", self.member_weights, shape)
        check_array(f"{what}: bias", np.array([self.bias], np.float32), (1,))
