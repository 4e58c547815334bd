"""Recipes of probes that are fitted on two labelled kinds of requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from probes.aggregate import (
    Aggregator,
    AttentionMean,
    Max,
    Mean,
    MultiMax,
    RollingAttentionMax,
    SlidingMeanMax,
)
from probes.fields import Fields
from probes.fit.directions import ContrastOptions, PersonaOptions
from probes.fit.logistic import LogisticOptions
from probes.fit.nonlinear import NonlinearOptions
from probes.fit.select import TOKENS, Selector
from probes.fit.training import TrainingOptions
from probes.hooks import check_hook_point

SOLVERS = ("memory", "stream")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPlan:
    """
    A detector to be fitted on requests of two kinds.

    Attributes:
        positive: Requests that show the behaviour.

        negative: Requests that do not; all others where it is None.
    """

    positive: Selector
    negative: Selector | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticPlan(LabelledPlan):
    """
    A linear probe by logistic regression on rows in memory.

    Attributes:
        options: How it is fitted.
    """

    options: LogisticOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan(LabelledPlan):
    """
    A linear probe fitted in passes over all rows.

    Attributes:
        kind: As `probes.fit.streamed.StreamTask.kind`.

        tokens: Tokens of a positive request that are taken to show the behaviour.

        options: How a logistic regression is fitted.

        hook_points: Where a probe over several layers reads; all of the data set's
            where it is empty. None for a probe of one.
    """

    kind: str
    tokens: str
    options: LogisticOptions
    hook_points: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastPlan(LabelledPlan):
    """
    A direction from pairs of requests.

    Attributes:
        options: How it is fitted.
    """

    options: ContrastOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonaPlan(LabelledPlan):
    """
    A direction in the space that personas span.

    Attributes:
        options: How it is fitted.
    """

    options: PersonaOptions


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


def read_logistic(table: Fields) -> LogisticPlan | StreamPlan:
    """Read ``family = "logistic"``, in memory or in passes by its *solver*."""
    kinds = _read_kinds(table)
    if read_solver(table) == "memory":
        options = _read_options(table)
        return LogisticPlan(positive=kinds[0], negative=kinds[1], options=options)
    return _read_regression(table, kinds, None)


def read_all_layers(table: Fields) -> StreamPlan:
    """Read ``family = "all_layers"``: one regression over several hook points."""
    hook_points: list[str] = []
    if table.has("hook_points"):
        hook_points = table.texts("hook_points")
        for hook_point in hook_points:
            _named(table, "hook_points", check_hook_point, hook_point)
        if len(set(hook_points)) < len(hook_points) or len(hook_points) < 2:
            table.fail("hook_points", f"expected different ones, found {hook_points}")
    return _read_regression(table, _read_kinds(table), tuple(hook_points))


def read_mass_mean(table: Fields) -> StreamPlan:
    """Read ``family = "mass_mean"``."""
    return _read_means(table, "mass_mean")


def read_lda(table: Fields) -> StreamPlan:
    """Read ``family = "lda"``."""
    return _read_means(table, "lda")


def read_contrast(table: Fields) -> ContrastPlan:
    """Read ``family = "contrast"``."""
    positive, negative = _read_kinds(table)
    pair, tokens = table.text("pair"), _read_tokens(table, "all")
    direction = table.text("direction", "mean")
    return ContrastPlan(
        positive=positive,
        negative=negative,
        options=_made(
            table,
            lambda: ContrastOptions(pair=pair, direction=direction, tokens=tokens),
        ),
    )


def read_persona(table: Fields) -> PersonaPlan:
    """Read ``family = "persona"``."""
    positive, negative = _read_kinds(table)
    return PersonaPlan(
        positive=positive,
        negative=negative,
        options=PersonaOptions(
            persona=table.text("persona"),
            n_components=table.integer("n_components", minimum=1),
            logistic=_read_options(table, has_rounds=False),
        ),
    )


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
    positive, negative = _read_kinds(table)
    temperature = table.number("temperature", 1.0)
    if temperature <= 0:
        table.fail("temperature", f"expected a positive number, found {temperature}")
    return SwimPlan(
        positive=positive,
        negative=negative,
        temperature=temperature,
        options=_read_training(table),
    )


READERS: dict[str, Callable[[Fields], LabelledPlan]] = {
    "logistic": read_logistic,
    "mass_mean": read_mass_mean,
    "lda": read_lda,
    "contrast": read_contrast,
    "persona": read_persona,
    "all_layers": read_all_layers,
    "mlp": read_mlp,
    "attention": read_attention,
    "multi_max": read_multi_max,
    "swim": read_swim,
}

# The aggregator where a recipe names none, and those that a family can have.
_DEFAULTS: dict[str, Aggregator] = {
    "mlp": Mean(),
    "attention": AttentionMean(n_heads=10),
    "multi_max": MultiMax(n_heads=10),
    "swim": SlidingMeanMax(),
}
_ALLOWED: dict[str, tuple[type[Aggregator], ...]] = {
    "attention": (AttentionMean, RollingAttentionMax),
    "multi_max": (MultiMax,),
    "swim": (SlidingMeanMax,),
}


def default_aggregator(family: str) -> Aggregator:
    """The aggregator of *family* where a recipe names none."""
    return _DEFAULTS.get(family, Max())


def check_family_aggregator(table: Fields, family: str, aggregator: Aggregator) -> None:
    """Fail unless a detector of *family* can have *aggregator*."""
    allowed = _ALLOWED.get(family, ())
    if allowed and not isinstance(aggregator, allowed):
        names = [one.name for one in allowed]
        table.fail("aggregator", f"expected one of {names}, found {aggregator.name!r}")
    if not allowed and aggregator.n_columns != 1:
        table.fail(
            "aggregator",
            f"expected one for a single column of evidence, found {aggregator.name!r}",
        )


def read_selector(table: Fields, key: str) -> Selector:
    """The requests that *key* selects by a label."""
    nested = table.table(key)
    label, equals = nested.text("label"), nested.take("equals")
    if not isinstance(equals, str | bool | int | float):
        nested.fail("equals", f"expected a string, truth value or number: {equals!r}")
    nested.close()
    return Selector(label=label, equals=equals)


def read_solver(table: Fields) -> str:
    """Where rows are: "memory", at most `max_rows`, or "stream", all in passes."""
    solver = table.text("solver", SOLVERS[0])
    if solver not in SOLVERS:
        table.fail("solver", f"expected one of {list(SOLVERS)}, found {solver!r}")
    return solver


def _read_kinds(table: Fields) -> tuple[Selector, Selector | None]:
    positive = read_selector(table, "positive")
    return positive, read_selector(table, "negative") if table.has("negative") else None


def _read_tokens(table: Fields, default: str) -> str:
    tokens = table.text("tokens", default)
    if tokens not in TOKENS:
        table.fail("tokens", f"expected one of {list(TOKENS)}, found {tokens!r}")
    return tokens


def _read_options(
    table: Fields, *, has_rounds: bool = True, has_rows: bool = True
) -> LogisticOptions:
    """Options of a regression, but for those that it would not use."""
    usual = LogisticOptions()
    tokens = _read_tokens(table, usual.tokens)
    strength = table.number("inverse_regularisation", usual.inverse_regularisation)
    rounds, keep, max_rows, seed = 1, usual.keep, usual.max_rows, usual.seed
    if has_rounds:
        keep = table.number("keep", usual.keep)
        rounds = table.integer("rounds", usual.rounds, minimum=1)
    if has_rows:
        max_rows = table.integer("max_rows", usual.max_rows, minimum=1)
        seed = table.integer("seed", usual.seed)
    return _made(
        table,
        lambda: LogisticOptions(
            tokens=tokens,
            rounds=rounds,
            keep=keep,
            inverse_regularisation=strength,
            max_rows=max_rows,
            seed=seed,
        ),
    )


def _read_regression(
    table: Fields,
    kinds: tuple[Selector, Selector | None],
    hook_points: tuple[str, ...] | None,
) -> StreamPlan:
    options = _read_options(table, has_rows=False)
    return StreamPlan(
        positive=kinds[0],
        negative=kinds[1],
        kind="logistic",
        tokens=options.tokens,
        options=options,
        hook_points=hook_points,
    )


def _read_means(table: Fields, kind: str) -> StreamPlan:
    positive, negative = _read_kinds(table)
    return StreamPlan(
        positive=positive,
        negative=negative,
        kind=kind,
        tokens=_read_tokens(table, "all"),
        options=LogisticOptions(),
    )


def _read_network(table: Fields, kind: str) -> NetworkPlan:
    positive, negative = _read_kinds(table)
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
    return _made(
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


def _made(table: Fields, make: Callable[[], _T]) -> _T:
    """What *make* gives; its error names the key, as ``key: problem``."""
    try:
        return make()
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        table.fail(key, problem)


def _named(table: Fields, key: str, check: Callable[[str], None], value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        table.fail(key, str(error).partition(": ")[2])
