"""Recipes of probes that are trained by gradient descent."""

from dataclasses import dataclass

from probes.fields import Fields
from probes.fit.nonlinear import NonlinearOptions
from probes.fit.plan_common import (
    LabelledPlan,
    made,
    read_kinds,
)
from probes.fit.training import TrainingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan(LabelledPlan):
    """
    A probe trained by gradient descent through its aggregator.

    Attributes:
        kind: ``mlp``, ``attention`` or ``multi_max``.

        options: Its shape, and how it is trained.
    """

    kind: str
    options: NonlinearOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SwimPlan(LabelledPlan):
    """
    A linear probe trained on sliding means of its logits.

    Attributes:
        temperature: Of the loss.

        options: How it is trained.
    """

    temperature: float
    options: TrainingOptions


def read_mlp(table: Fields) -> NetworkPlan:
    """Read ``family = "mlp"``."""
    return _read_network(table, "mlp")


def read_attention(table: Fields) -> NetworkPlan:
    """Read ``family = "attention"``."""
    return _read_network(table, "attention")


def read_multi_max(table: Fields) -> NetworkPlan:
    """Read ``family = "multi_max"``."""
    return _read_network(table, "multi_max")


def read_swim(table: Fields) -> SwimPlan:
    """Read ``family = "swim"``."""
    positive, negative = read_kinds(table)
    temperature = table.number("temperature", 1.0)
    if temperature <= 0:
        table.fail("temperature", f"expected a positive number, found {temperature}")
    return SwimPlan(
        positive=positive,
        negative=negative,
        temperature=temperature,
        options=_read_training(table),
    )


def _read_network(table: Fields, kind: str) -> NetworkPlan:
    positive, negative = read_kinds(table)
    usual = NonlinearOptions()
    width = table.integer("width", usual.width, minimum=1)
    n_hidden = table.integer("n_hidden", usual.n_hidden)
    is_hard = table.take("is_hard") if table.has("is_hard") else usual.is_hard
    if not isinstance(is_hard, bool):
        table.fail("is_hard", f"expected true or false, found {is_hard!r}")
    training = _read_training(table)
    options = NonlinearOptions(
        width=width, n_hidden=n_hidden, is_hard=is_hard, training=training
    )
    return NetworkPlan(positive=positive, negative=negative, kind=kind, options=options)


def _read_training(table: Fields) -> TrainingOptions:
    usual = TrainingOptions()
    steps = table.integer("steps", usual.steps, minimum=1)
    batch_size = table.integer("batch_size", usual.batch_size, minimum=2)
    max_tokens = table.integer("max_tokens", usual.max_tokens, minimum=1)
    rate = table.number("learning_rate", usual.learning_rate)
    decay = table.number("weight_decay", usual.weight_decay)
    seed = table.integer("seed", usual.seed)
    return made(
        table,
        lambda: TrainingOptions(
            steps=steps,
            batch_size=batch_size,
            max_tokens=max_tokens,
            learning_rate=rate,
            weight_decay=decay,
            seed=seed,
        ),
    )
