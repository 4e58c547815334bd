# PyTorch is imported when something is trained, and nowhere else: scoring, and every
# other fit, do without it.
"""Trains probes by gradient descent on labels of requests; needs PyTorch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.aggregate import (
    Aggregator,
    AttentionMean,
    Last,
    Max,
    MultiMax,
    RollingAttentionMax,
    SoftmaxMean,
)
from probes.arrays import Float32, Float64, Int64
from probes.fit.bags import Bags, Scaler

if TYPE_CHECKING:
    from torch import Tensor

    Parameters = Mapping[str, Tensor]
    Loss = Callable[[Parameters, Tensor, float], Tensor]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """
    How a probe is trained: AdamW, after Kramar et al., arXiv 2601.11516, appendix C.

    Attributes:
        steps: Gradient steps.

        batch_size: Requests a step, half of them positive.

        learning_rate: Of AdamW. The paper takes 1e-4 on far more data.

        weight_decay: Of AdamW.

        max_tokens: Of a longer request, as many tokens in a row are drawn anew each
            step, which bounds memory.

        seed: Of the first weights and of all draws.
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 3e-3
    max_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for key, least in (("steps", 1), ("batch_size", 2), ("max_tokens", 1)):
            if getattr(self, key) < least:
                raise ValueError(
                    f"{key}: expected at least {least}, got {getattr(self, key)}"
                )
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(
                f"learning_rate: expected a positive number, got {self.learning_rate}"
            )
        if not 0 <= self.weight_decay < np.inf:
            raise ValueError(
                f"weight_decay: expected a number from 0, got {self.weight_decay}"
            )


def import_torch() -> ModuleType:
    """
    PyTorch.

    Raises:
        ValueError: It is not installed; says how to install it.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"training needs PyTorch, pip install 'innerwatch[train]': {error}"
        ) from error
    return torch


def train(
    activations: Float32,
    bags: Bags,
    scaler: Scaler,
    start: Mapping[str, Float64],
    loss: "Loss",
    options: TrainingOptions,
    progress: Progress | None = None,
) -> dict[str, Float64]:
    """
    Minimise the mean of *loss* over requests, both classes weighing the same.

    On one thread, so that the same inputs give the same bytes.

    Args:
        activations: Of shape (n_rows, d_model), float32; may be a memory map.

        bags: The requests.

        scaler: Standardises what *loss* is given.

        start: Parameters by name.

        loss: Of parameters, one request's activations and its label, 0 or 1.

        options: See `TrainingOptions`.

        progress: Called with steps done and steps in all.

    Returns:
        The trained parameters.

    Raises:
        ValueError: PyTorch is not installed, or the loss is no longer finite.
    """
    torch = import_torch()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parameters = {
            name: torch.tensor(value, dtype=torch.float32, requires_grad=True)
            for name, value in start.items()
        }
        optimizer = torch.optim.AdamW(
            list(parameters.values()),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        for step, batch in enumerate(_batches(bags, options)):
            optimizer.zero_grad()
            losses = [
                loss(parameters, torch.from_numpy(scaler(activations[rows])), label)
                for rows, label in batch
            ]
            mean = torch.stack(losses).mean()
            if not np.isfinite(mean.item()):
                raise ValueError(
                    f"learning_rate: expected one that converges, got "
                    f"{options.learning_rate} and a loss of {mean.item()} at {step=}"
                )
            mean.backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, options.steps)
        return {
            name: value.detach().numpy().astype(np.float64)
            for name, value in parameters.items()
        }
    finally:
        torch.set_num_threads(n_threads)


def statistic(aggregator: Aggregator, evidence: "Tensor", is_hard: bool) -> "Tensor":
    """
    The statistic of one request in PyTorch, for a loss to be taken through.

    An aggregator that is not named here is trained as a mean, as EMA probes are
    (Kramar et al., arXiv 2601.11516, section 3).

    Args:
        aggregator: Of the probe.

        evidence: Of shape (n_tokens, n_columns).

        is_hard: Whether a maximum over tokens is one; else each token is weighted by
            the softmax of its own value, so that all of them learn.
    """
    match aggregator:
        case AttentionMean(n_heads=n):
            logits, values = evidence[:, :n], evidence[:, n:]
            return (logits.softmax(dim=0) * values).sum()
        case RollingAttentionMax(n_heads=n, window=window):
            means = _rolling(evidence[:, :n], evidence[:, n:], window)
            return _maxima(means, is_hard).sum()
        case MultiMax() | Max():
            return _maxima(evidence, is_hard).sum()
        case SoftmaxMean(temperature=temperature):
            return ((evidence / temperature).softmax(dim=0) * evidence).sum()
        case Last():
            return evidence[-1, 0]
        case _:
            return evidence.mean()


def swim_loss(
    logits: "Tensor", label: float, window: int, temperature: float
) -> "Tensor":
    """
    Loss of a request on sliding means of its logits, the highest weighing most.

    sum_{t >= M} w_t BCE(y, z_t) with z_t the mean of the last M logits and
    w = softmax(z / temperature): "SWiM" of Cunningham et al., arXiv 2601.04603. A
    request shorter than the window has one mean.

    Args:
        logits: Of shape (n_tokens,).

        label: 0 or 1.

        window: M.

        temperature: tau.
    """
    torch = import_torch()
    means = logits.unfold(0, min(window, len(logits)), 1).mean(dim=1)
    weights = (means / temperature).softmax(dim=0)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        means, torch.full_like(means, label), reduction="none"
    )
    total: Tensor = (weights * losses).sum()
    return total


def request_loss(value: "Tensor", label: float) -> "Tensor":
    """Binary cross-entropy of one request's statistic, a logit."""
    torch = import_torch()
    loss: Tensor = torch.nn.functional.softplus(value if label == 0 else -value)
    return loss


def _maxima(values: "Tensor", is_hard: bool) -> "Tensor":
    if is_hard:
        return values.amax(dim=0)
    return (values.softmax(dim=0) * values).sum(dim=0)


def _rolling(logits: "Tensor", values: "Tensor", window: int) -> "Tensor":
    """Attention over the last *window* tokens at each, (n_tokens, n_heads)."""
    torch: Any = import_torch()
    pad = (0, 0, window - 1, 0)  # A token that is not there weighs nothing.
    q = torch.nn.functional.pad(logits, pad, value=-torch.inf).unfold(0, window, 1)
    v = torch.nn.functional.pad(values, pad).unfold(0, window, 1)
    means: Tensor = (q.softmax(dim=2) * v).sum(dim=2)
    return means


def _batches(
    bags: Bags, options: TrainingOptions
) -> Iterator[list[tuple[Int64, float]]]:
    """For each step, requests' rows and labels, as many of either kind."""
    rng = np.random.default_rng(options.seed)
    n_positive = options.batch_size // 2
    kinds = (
        (bags.positive, n_positive, 1.0),
        (bags.negative, options.batch_size - n_positive, 0.0),
    )
    for _ in range(options.steps):
        yield [
            (_crop(kind[index], options.max_tokens, rng), label)
            for kind, n, label in kinds
            for index in rng.integers(0, len(kind), size=n)
        ]


def _crop(rows: Int64, max_tokens: int, rng: np.random.Generator) -> Int64:
    first = int(rng.integers(0, max(1, len(rows) - max_tokens + 1)))
    return rows[first : first + max_tokens]
