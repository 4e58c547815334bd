"""Fits MLP, attention and MultiMax probes, and linear ones by their windows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from probes.aggregate import (
    Aggregator,
    AttentionMean,
    MultiMax,
    RollingAttentionMax,
    SlidingMeanMax,
)
from probes.arrays import Float32, Float64
from probes.attention import AttentionProbe, MultiMaxProbe
from probes.dataset import Dataset
from probes.fit.bags import Bags, Scaler
from probes.fit.training import (
    Progress,
    TrainingOptions,
    request_loss,
    statistic,
    swim_loss,
    train,
)
from probes.linear import LinearProbe
from probes.mlp import MLPProbe

if TYPE_CHECKING:
    from torch import Tensor

    from probes.fit.training import Loss, Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class NonlinearOptions:
    """
    The shape of a network, and how it is trained.

    Attributes:
        width: Of every layer.

        n_hidden: Layers behind the first.

        is_hard: Whether a maximum over tokens is one in training, too; else the
            softmax of the values weighs them.

        training: See `TrainingOptions`.
    """

    width: int = 100
    n_hidden: int = 1
    is_hard: bool = False
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        for key, least in (("width", 1), ("n_hidden", 0)):
            if getattr(self, key) < least:
                raise ValueError(
                    f"{key}: expected at least {least}, got {getattr(self, key)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """
    A behaviour to be learnt from labelled requests.

    Attributes:
        dataset: Has activations at *hook_point*.

        name: Of the probe.

        hook_point: Where it reads.

        positive: Indices of requests that show the behaviour.

        negative: Indices of requests that do not.
    """

    dataset: Dataset
    name: str
    hook_point: str
    positive: Sequence[int]
    negative: Sequence[int]

    def bags(self, aggregator: Aggregator) -> Bags:
        """
        The rows that *aggregator* counts.

        Raises:
            ValueError: A class has no tokens, or a request is in both.
        """
        return Bags.of(
            self.dataset,
            name=self.name,
            positive=self.positive,
            negative=self.negative,
            counted=aggregator.tokens,
        )


def fit_mlp(
    task: Task,
    aggregator: Aggregator,
    options: NonlinearOptions | None = None,
    progress: Progress | None = None,
) -> MLPProbe:
    """
    Train an MLP on each token, its logits aggregated as they will be.

    Raises:
        ValueError: A class has no tokens, the aggregator is for several columns, or
            PyTorch is not installed.
    """
    options = options or NonlinearOptions()
    start = _layers(task, options)
    start["out"] = _normal(options.training.seed + 1, (1, options.width))
    start["out_bias"] = np.zeros(1)
    made, weight, bias = _train(task, aggregator, start, options, progress)
    return MLPProbe(
        name=task.name,
        hook_point=task.hook_point,
        weight=weight,
        bias=bias,
        hidden_weights=made["hidden_weights"].astype(np.float32),
        hidden_biases=made["hidden_biases"].astype(np.float32),
        out_weight=made["out"][0].astype(np.float32),
        out_bias=float(made["out_bias"][0]),
        aggregator=aggregator,
    )


def fit_attention(
    task: Task,
    aggregator: AttentionMean | RollingAttentionMax,
    options: NonlinearOptions | None = None,
    progress: Progress | None = None,
) -> AttentionProbe:
    """
    Train an attention probe with as many heads as *aggregator* has.

    Raises:
        ValueError: A class has no tokens, or PyTorch is not installed.
    """
    options = options or NonlinearOptions()
    n_heads = aggregator.n_heads
    start = _layers(task, options)
    start["out"] = _normal(options.training.seed + 1, (2 * n_heads, options.width))
    start["out_bias"] = np.zeros(n_heads)
    made, weight, bias = _train(task, aggregator, start, options, progress)
    return AttentionProbe(
        name=task.name,
        hook_point=task.hook_point,
        weight=weight,
        bias=bias,
        hidden_weights=made["hidden_weights"].astype(np.float32),
        hidden_biases=made["hidden_biases"].astype(np.float32),
        queries=made["out"][:n_heads].astype(np.float32),
        values=made["out"][n_heads:].astype(np.float32),
        value_biases=made["out_bias"].astype(np.float32),
        aggregator=aggregator,
    )


def fit_multi_max(
    task: Task,
    aggregator: MultiMax,
    options: NonlinearOptions | None = None,
    progress: Progress | None = None,
) -> MultiMaxProbe:
    """
    Train a MultiMax probe with as many heads as *aggregator* has.

    Raises:
        ValueError: A class has no tokens, or PyTorch is not installed.
    """
    options = options or NonlinearOptions()
    start = _layers(task, options)
    shape = (aggregator.n_heads, options.width)
    start["out"] = _normal(options.training.seed + 1, shape)
    start["out_bias"] = np.zeros(aggregator.n_heads)
    made, weight, bias = _train(task, aggregator, start, options, progress)
    return MultiMaxProbe(
        name=task.name,
        hook_point=task.hook_point,
        weight=weight,
        bias=bias,
        hidden_weights=made["hidden_weights"].astype(np.float32),
        hidden_biases=made["hidden_biases"].astype(np.float32),
        values=made["out"].astype(np.float32),
        value_biases=made["out_bias"].astype(np.float32),
        aggregator=aggregator,
    )


def fit_swim(
    task: Task,
    aggregator: SlidingMeanMax | None = None,
    *,
    temperature: float = 1.0,
    options: TrainingOptions | None = None,
    progress: Progress | None = None,
) -> LinearProbe:
    """
    Train a linear probe on sliding means of its logits; see `training.swim_loss`.

    Args:
        task: What to learn.

        aggregator: Of the probe; its window is the loss's.

        temperature: tau of the loss, positive.

        options: See `TrainingOptions`.

        progress: Called with steps done and steps in all.

    Raises:
        ValueError: A class has no tokens, the temperature is not positive, or
            PyTorch is not installed.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    aggregator = aggregator or SlidingMeanMax()
    options = options or TrainingOptions()
    window = aggregator.window

    def loss(parameters: "Parameters", x: "Tensor", label: float) -> "Tensor":
        logits = x @ parameters["weight"] + parameters["bias"]
        return swim_loss(logits, label, window, temperature)

    activations, bags = task.dataset.activations[task.hook_point], task.bags(aggregator)
    scaler = Scaler.of(activations, bags, options.seed)
    start = {"weight": np.zeros(activations.shape[1]), "bias": np.zeros(())}
    made = train(activations, bags, scaler, start, loss, options, progress)
    weight, bias = scaler.fold(made["weight"], made["bias"])
    return LinearProbe(
        name=task.name,
        hook_point=task.hook_point,
        weight=weight,
        bias=float(bias),
        aggregator=aggregator,
    )


def _layers(task: Task, options: NonlinearOptions) -> dict[str, Float64]:
    """Layers as He et al. (2015, arXiv 1502.01852) start them."""
    d_model, width = task.dataset.activations[task.hook_point].shape[1], options.width
    n, seed = options.n_hidden, options.training.seed
    return {
        "weight": _normal(seed + 2, (width, d_model)),
        "bias": np.zeros(width),
        "hidden_weights": _normal(seed + 3, (n, width, width)),
        "hidden_biases": np.zeros((n, width)),
    }


def _normal(seed: int, shape: tuple[int, ...]) -> Float64:
    scale = np.sqrt(2 / shape[-1])
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def _train(
    task: Task,
    aggregator: Aggregator,
    start: dict[str, Float64],
    options: NonlinearOptions,
    progress: Progress | None,
) -> tuple[dict[str, Float64], Float32, Float32]:
    """The trained parameters, and the first layer on raw activations."""
    loss = _loss(aggregator, options.is_hard)
    activations, bags = task.dataset.activations[task.hook_point], task.bags(aggregator)
    scaler = Scaler.of(activations, bags, options.training.seed)
    made = train(activations, bags, scaler, start, loss, options.training, progress)
    return made, *scaler.fold(made["weight"], made["bias"])


def _loss(aggregator: Aggregator, is_hard: bool) -> "Loss":
    """Cross-entropy of the statistic that the network's last layers lead to."""

    def loss(parameters: "Parameters", x: "Tensor", label: float) -> "Tensor":
        hidden = (x @ parameters["weight"].T + parameters["bias"]).relu()
        layers = zip(
            parameters["hidden_weights"], parameters["hidden_biases"], strict=True
        )
        for weight, bias in layers:
            hidden = (hidden @ weight.T + bias).relu()
        evidence = hidden @ parameters["out"].T
        # Of an attention head's logit and value, the value has a bias.
        n_biased = len(parameters["out_bias"])
        evidence[:, evidence.shape[1] - n_biased :] += parameters["out_bias"]
        return request_loss(statistic(aggregator, evidence, is_hard), label)

    return loss
