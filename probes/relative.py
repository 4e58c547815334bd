"""Relative Mahalanobis distance: how much farther from one thing than from another."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32
from probes.detector import Projection, check_aggregator, check_columns, check_name
from probes.mahalanobis import Mahalanobis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RelativeMahalanobis:
    """
    Distance from what is served, less the distance from everything.

        M_served(x) - M_background(x)

    (Ren et al. 2021, arXiv 2106.09022). Directions in which all text varies much
    weigh on both and go away; what is left is what is odd about this traffic.

    Attributes:
        name: Used as a label value.

        served: Fitted on benign requests of the kind that is served.

        background: Fitted on requests of every kind, at the same hook point.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    served: Mahalanobis
    background: Mahalanobis
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"relative Mahalanobis {self.name!r}"
        check_aggregator(what, self.aggregator, 1)
        places = {(d.hook_point, len(d.mean)) for d in (self.served, self.background)}
        if len(places) > 1:
            raise ValueError(
                f"{what}: background: expected one hook point and d_model of both, "
                f"got {sorted(places)}"
            )
        both = self.served.projections + self.background.projections
        object.__setattr__(self, "projections", both)

    def head(self, columns: Float32) -> Float32:
        """The difference of both heads; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        width = self.served.projections[0].n_columns
        served = self.served.head(columns[:, :width])
        background = self.background.head(columns[:, width:])
        # Two numbers of at least 0: their difference cannot overflow.
        difference: Float32 = np.subtract(served, background, dtype=np.float32)
        return difference
