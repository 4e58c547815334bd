"""Linear probes: one direction in the residual stream, and a bias."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProbe:
    """
    A direction, as logistic regression or a difference of means gives one.

    >>> from probes.aggregate import Max
    >>> from probes.detector import score
    >>> probe = LinearProbe(
    ...     name="deception", hook_point="blocks.15.hook_resid_post",
    ...     weight=np.array([1, -1], dtype=np.float32), bias=0.5, aggregator=Max(),
    ... )
    >>> x = np.array([[2, 0], [0, 2]], dtype=np.float32)
    >>> score(probe, {"blocks.15.hook_resid_post": x})
    array([[ 2.5],
           [-1.5]], dtype=float32)

    Attributes:
        name: What the probe detects. Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        weight: Probe direction of shape (d_model,), float32.

        bias: Added to the dot product. Evidence is in logits.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    weight: Float32
    bias: float
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        check_array(f"probe {self.name!r}: weight", self.weight, ("d_model",))
        check_aggregator(f"probe {self.name!r}", self.aggregator, 1)
        projection = Projection(
            hook_point=self.hook_point,
            weight=self.weight[None, :],
            bias=np.array([self.bias], dtype=np.float32),
        )
        object.__setattr__(self, "projections", (projection,))

    def head(self, columns: Float32) -> Float32:
        """The one column, as it is; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        return columns
