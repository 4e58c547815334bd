"""MLP probes: a few ReLU layers on one activation, to a logit."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name
from probes.relu import as_evidence, check_layers, first_layer, last_hidden


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MLPProbe:
    """
    A multilayer perceptron on each token's activation: MLP_M(x).

    With one hidden layer: out_weight . relu(weight x + bias) + out_bias. The MLP
    probe of Kramar et al., arXiv 2601.11516, section 3, by default aggregated by
    the mean over tokens.

    >>> from probes.aggregate import Mean
    >>> from probes.detector import score
    >>> probe = MLPProbe(
    ...     name="either", hook_point="blocks.15.hook_resid_post",
    ...     weight=np.array([[1, 0], [-1, 0]], dtype=np.float32),
    ...     bias=np.zeros(2, dtype=np.float32),
    ...     hidden_weights=np.empty((0, 2, 2), dtype=np.float32),
    ...     hidden_biases=np.empty((0, 2), dtype=np.float32),
    ...     out_weight=np.ones(2, dtype=np.float32), out_bias=-1.0, aggregator=Mean(),
    ... )
    >>> x = np.array([[3, 0], [-3, 0], [0, 3]], dtype=np.float32)
    >>> score(probe, {"blocks.15.hook_resid_post": x}).tolist()
    [[2.0], [2.0], [-1.0]]

    Attributes:
        name: What the probe detects. Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        weight: First layer of shape (width, d_model), float32: the projection.

        bias: Of the first layer, (width,), float32.

        hidden_weights: Layers behind it, (n_layers, width, width), float32; ReLU
            before each, and after the last.

        hidden_biases: Of these, (n_layers, width), float32.

        out_weight: To the logit, of shape (width,), float32.

        out_bias: Added to it. Evidence is in logits.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    hook_point: str
    weight: Float32
    bias: Float32
    hidden_weights: Float32
    hidden_biases: Float32
    out_weight: Float32
    out_bias: float
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"MLP probe {self.name!r}"
        width = check_layers(
            what, self.weight, self.bias, self.hidden_weights, self.hidden_biases
        )
        check_array(f"{what}: out_weight", self.out_weight, (width,))
        check_array(f"{what}: out_bias", np.array([self.out_bias], np.float32), (1,))
        check_aggregator(what, self.aggregator, 1)
        projection = first_layer(self.hook_point, self.weight, self.bias)
        object.__setattr__(self, "projections", (projection,))

    def head(self, columns: Float32) -> Float32:
        """The logit of each token; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        hidden = last_hidden(columns, self.hidden_weights, self.hidden_biases)
        logits = hidden @ self.out_weight.astype(np.float64) + self.out_bias
        return as_evidence(logits[:, None])
