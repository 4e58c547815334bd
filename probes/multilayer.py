"""Linear probes over several layers at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name
from probes.relu import as_evidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MultiLayerProbe:
    """
    One direction in the activations of several hook points, end to end.

    z = W . [x_1; ...; x_L] + b, the linear probe over all layers of Cunningham et
    al., arXiv 2601.04603. The dot product falls into one column a hook point.

    >>> from probes.aggregate import EMAMax
    >>> from probes.detector import score
    >>> hooks = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
    >>> probe = MultiLayerProbe(
    ...     name="deception", hook_points=hooks, bias=0.5, aggregator=EMAMax(),
    ...     weights=np.array([[1, 0], [0, 2]], dtype=np.float32),
    ... )
    >>> x = np.array([[3, 4]], dtype=np.float32)
    >>> score(probe, dict.fromkeys(hooks, x))
    array([[11.5]], dtype=float32)

    Attributes:
        name: What the probe detects. Used as a label value.

        hook_points: Where it reads, all different.

        weights: A direction for each hook point, (n_hook_points, d_model), float32.

        bias: Added to the sum. Evidence is in logits.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_points: tuple[str, ...]
    weights: Float32
    bias: float
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"probe {self.name!r}"
        if not self.hook_points or len({*self.hook_points}) < len(self.hook_points):
            raise ValueError(
                f"{what}: hook_points: expected different ones, "
                f"got {list(self.hook_points)}"
            )
        check_array(
            f"{what}: weights", self.weights, (len(self.hook_points), "d_model")
        )
        check_array(f"{what}: bias", np.array([self.bias], np.float32), (1,))
        check_aggregator(what, self.aggregator, 1)
        projections = tuple(
            Projection(
                hook_point=hook_point,
                weight=weight[None, :],
                bias=np.zeros(1, dtype=np.float32),
            )
            for hook_point, weight in zip(self.hook_points, self.weights, strict=True)
        )
        object.__setattr__(self, "projections", projections)

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> dict[str, float]:
        """
        By hook point, the bias not counted; see `probes.contributions.Contributing`.
        """
        check_columns(self, columns)
        return dict(zip(self.hook_points, columns[0].tolist(), strict=True))

    def head(self, columns: Float32) -> Float32:
        """The sum over hook points; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        total = columns.sum(axis=1, dtype=np.float64, keepdims=True) + self.bias
        return as_evidence(total)
