"""Attention and MultiMax probes: heads that weigh a request's tokens."""

from dataclasses import dataclass, field

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, check_array
from probes.detector import Projection, check_aggregator, check_columns, check_name
from probes.relu import as_evidence, check_layers, first_layer, last_hidden


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionProbe:
    """
    Heads that each ask for some of a request's tokens and value them.

    With y the activation behind the ReLU layers, evidence is of each head h its
    logit q_h . y and its value v_h . y + c_h; the aggregator makes of them
    sum_h sum_j softmax(q_h . y)_j (v_h . y_j + c_h) over all tokens
    (`AttentionMean`) or over a rolling window, at its highest
    (`RollingAttentionMax`). Kramar et al., arXiv 2601.11516, section 3, where
    y = MLP_2(x) of width 100. A last layer without ReLU is one with the queries
    and values multiplied into it.

    Attributes:
        name: What the probe detects. Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        weight: First layer of shape (width, d_model), float32: the projection.

        bias: Of the first layer, (width,), float32.

        hidden_weights: Layers behind it, (n_layers, width, width), float32; ReLU
            before each, and after the last.

        hidden_biases: Of these, (n_layers, width), float32.

        queries: q_h, of shape (n_heads, width), float32.

        values: v_h, of shape (n_heads, width), float32.

        value_biases: c_h, of shape (n_heads,), float32. The paper has none; a loss
            on logits needs one, and it passes through any weighted mean.

        aggregator: `AttentionMean` or `RollingAttentionMax` of n_heads.
    """

    name: str
    hook_point: str
    weight: Float32
    bias: Float32
    hidden_weights: Float32
    hidden_biases: Float32
    queries: Float32
    values: Float32
    value_biases: Float32
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"attention probe {self.name!r}"
        width = check_layers(
            what, self.weight, self.bias, self.hidden_weights, self.hidden_biases
        )
        check_array(f"{what}: queries", self.queries, ("n_heads", width))
        n_heads = len(self.queries)
        check_array(f"{what}: values", self.values, (n_heads, width))
        check_array(f"{what}: value_biases", self.value_biases, (n_heads,))
        check_aggregator(what, self.aggregator, 2 * n_heads)
        projection = first_layer(self.hook_point, self.weight, self.bias)
        object.__setattr__(self, "projections", (projection,))

    @property
    def n_heads(self) -> int:
        return len(self.queries)

    def head(self, columns: Float32) -> Float32:
        """All logits, then all values; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        hidden = last_hidden(columns, self.hidden_weights, self.hidden_biases)
        rows = np.concatenate([self.queries, self.values]).astype(np.float64)
        evidence = hidden @ rows.T
        evidence[:, self.n_heads :] += self.value_biases
        return as_evidence(evidence)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MultiMaxProbe:
    """
    Heads that each value the one token that they value most.

    With y the activation behind the ReLU layers, evidence is of each head h its
    value v_h . y + c_h, and the statistic sum_h max_j (v_h . y_j + c_h). Kramar et
    al., arXiv 2601.11516, section 3: long requests do not dilute it.

    Attributes:
        name: What the probe detects. Used as a label value.

        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        weight: First layer of shape (width, d_model), float32: the projection.

        bias: Of the first layer, (width,), float32.

        hidden_weights: Layers behind it, (n_layers, width, width), float32; ReLU
            before each, and after the last.

        hidden_biases: Of these, (n_layers, width), float32.

        values: v_h, of shape (n_heads, width), float32.

        value_biases: c_h, of shape (n_heads,), float32; see `AttentionProbe`.

        aggregator: `MultiMax` of n_heads.
    """

    name: str
    hook_point: str
    weight: Float32
    bias: Float32
    hidden_weights: Float32
    hidden_biases: Float32
    values: Float32
    value_biases: Float32
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"MultiMax probe {self.name!r}"
        width = check_layers(
            what, self.weight, self.bias, self.hidden_weights, self.hidden_biases
        )
        check_array(f"{what}: values", self.values, ("n_heads", width))
        n_heads = len(self.values)
        check_array(f"{what}: value_biases", self.value_biases, (n_heads,))
        check_aggregator(what, self.aggregator, n_heads)
        projection = first_layer(self.hook_point, self.weight, self.bias)
        object.__setattr__(self, "projections", (projection,))

    def head(self, columns: Float32) -> Float32:
        """Each head's value; see `probes.detector.Detector.head`."""
        check_columns(self, columns)
        hidden = last_hidden(columns, self.hidden_weights, self.hidden_biases)
        return as_evidence(
            hidden @ self.values.T.astype(np.float64) + self.value_biases
        )
