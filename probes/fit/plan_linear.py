"""Recipes of linear probes."""

from dataclasses import dataclass

from probes.fields import Fields
from probes.fit.directions import ContrastOptions, PersonaOptions
from probes.fit.logistic import LogisticOptions
from probes.fit.plan_common import (
    LabelledPlan,
    made,
    read_hook_points,
    read_kinds,
    read_tokens,
)
from probes.fit.select import Selector

SOLVERS = ("memory", "stream")


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


def read_logistic(table: Fields) -> LogisticPlan | StreamPlan:
    """Read ``family = "logistic"``, in memory or in passes by its *solver*."""
    kinds = read_kinds(table)
    if read_solver(table) == "memory":
        options = read_options(table)
        return LogisticPlan(positive=kinds[0], negative=kinds[1], options=options)
    return _read_regression(table, kinds, None)


def read_all_layers(table: Fields) -> StreamPlan:
    """Read ``family = "all_layers"``: one regression over several hook points."""
    hook_points = read_hook_points(table, "hook_points")
    return _read_regression(table, read_kinds(table), hook_points)


def read_mass_mean(table: Fields) -> StreamPlan:
    """Read ``family = "mass_mean"``."""
    return _read_means(table, "mass_mean")


def read_lda(table: Fields) -> StreamPlan:
    """Read ``family = "lda"``."""
    return _read_means(table, "lda")


def read_contrast(table: Fields) -> ContrastPlan:
    """Read ``family = "contrast"``."""
    positive, negative = read_kinds(table)
    pair, tokens = table.text("pair"), read_tokens(table, "all")
    direction = table.text("direction", "mean")
    return ContrastPlan(
        positive=positive,
        negative=negative,
        options=made(
            table,
            lambda: ContrastOptions(pair=pair, direction=direction, tokens=tokens),
        ),
    )


def read_persona(table: Fields) -> PersonaPlan:
    """Read ``family = "persona"``."""
    positive, negative = read_kinds(table)
    return PersonaPlan(
        positive=positive,
        negative=negative,
        options=PersonaOptions(
            persona=table.text("persona"),
            n_components=table.integer("n_components", minimum=1),
            logistic=read_options(table, has_rounds=False),
        ),
    )


def read_solver(table: Fields) -> str:
    """Where rows are: "memory", at most `max_rows`, or "stream", all in passes."""
    solver = table.text("solver", SOLVERS[0])
    if solver not in SOLVERS:
        table.fail("solver", f"expected one of {list(SOLVERS)}, found {solver!r}")
    return solver


def read_options(
    table: Fields, *, has_rounds: bool = True, has_rows: bool = True
) -> LogisticOptions:
    """Options of a regression, but for those that it would not use."""
    usual = LogisticOptions()
    tokens = read_tokens(table, usual.tokens)
    strength = table.number("inverse_regularisation", usual.inverse_regularisation)
    rounds, keep, max_rows, seed = 1, usual.keep, usual.max_rows, usual.seed
    if has_rounds:
        keep = table.number("keep", usual.keep)
        rounds = table.integer("rounds", usual.rounds, minimum=1)
    if has_rows:
        max_rows = table.integer("max_rows", usual.max_rows, minimum=1)
        seed = table.integer("seed", usual.seed)
    return made(
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
    options = read_options(table, has_rows=False)
    return StreamPlan(
        positive=kinds[0],
        negative=kinds[1],
        kind="logistic",
        tokens=options.tokens,
        options=options,
        hook_points=hook_points,
    )


def _read_means(table: Fields, kind: str) -> StreamPlan:
    positive, negative = read_kinds(table)
    return StreamPlan(
        positive=positive,
        negative=negative,
        kind=kind,
        tokens=read_tokens(table, "all"),
        options=LogisticOptions(),
    )
