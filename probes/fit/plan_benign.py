"""Recipes of detectors that have seen benign requests only."""

from collections.abc import Callable
from dataclasses import dataclass

from probes.fields import Fields
from probes.fit.plan_common import read_hook_points, read_selector
from probes.fit.select import Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagonalPlan:
    """A diagonal Mahalanobis distance; see `probes.fit.benign.fit_diagonal`."""

    max_rows: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativePlan:
    """
    A relative Mahalanobis distance; see `probes.fit.benign.fit_relative`.

    Attributes:
        background: Requests of every kind; all of the data set where it is None.
    """

    background: Selector | None
    rank: int | None
    max_rows: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestPlan:
    """A distance to a coreset; see `probes.fit.benign.fit_nearest`."""

    n_coreset: int
    k: int
    is_normalised: bool
    max_rows: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QUEPlan:
    """
    Quantum entropy scores; see `probes.fit.benign.fit_que`.

    Attributes:
        traffic: Requests that may hold others; all of the data set where it is None.
    """

    traffic: Selector | None
    strength: float
    rank: int | None
    max_rows: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDeltaPlan:
    """
    Layer-delta consistency; see `probes.fit.layer_delta.fit_layer_delta`.

    Attributes:
        hook_points: Where it reads; all of the data set's where it is empty.
    """

    hook_points: tuple[str, ...]
    rank: int | None
    max_rows: int
    seed: int


BenignPlan = DiagonalPlan | RelativePlan | NearestPlan | QUEPlan | LayerDeltaPlan


def _read_diagonal(table: Fields) -> DiagonalPlan:
    max_rows, seed = _drawn(table, 50_000)
    return DiagonalPlan(max_rows=max_rows, seed=seed)


def _read_relative(table: Fields) -> RelativePlan:
    max_rows, seed = _drawn(table, 50_000)
    return RelativePlan(
        background=_selector(table, "background"),
        rank=_rank(table),
        max_rows=max_rows,
        seed=seed,
    )


def _read_nearest(table: Fields) -> NearestPlan:
    max_rows, seed = _drawn(table, 20_000)
    n_coreset = table.integer("n_coreset", 64, minimum=1)
    k = table.integer("k", 1, minimum=1)
    if k > n_coreset:
        table.fail("k", f"expected at most n_coreset, {n_coreset}, found {k}")
    is_normalised = table.truth("is_normalised") if table.has("is_normalised") else True
    return NearestPlan(
        n_coreset=n_coreset,
        k=k,
        is_normalised=is_normalised,
        max_rows=max_rows,
        seed=seed,
    )


def _read_que(table: Fields) -> QUEPlan:
    max_rows, seed = _drawn(table, 50_000)
    strength = table.number("strength", 4.0)
    if strength < 0:
        table.fail("strength", f"expected a number of at least 0, found {strength}")
    return QUEPlan(
        traffic=_selector(table, "traffic"),
        strength=strength,
        rank=_rank(table),
        max_rows=max_rows,
        seed=seed,
    )


def _read_layer_delta(table: Fields) -> LayerDeltaPlan:
    max_rows, seed = _drawn(table, 50_000)
    return LayerDeltaPlan(
        hook_points=read_hook_points(table, "hook_points"),
        rank=_rank(table),
        max_rows=max_rows,
        seed=seed,
    )


BENIGN_READERS: dict[str, Callable[[Fields], BenignPlan]] = {
    "diagonal": _read_diagonal,
    "relative_mahalanobis": _read_relative,
    "nearest": _read_nearest,
    "que": _read_que,
    "layer_delta": _read_layer_delta,
}


def _drawn(table: Fields, usual: int) -> tuple[int, int]:
    """At most how many tokens are drawn, and the seed of that."""
    return table.integer("max_rows", usual, minimum=2), table.integer("seed", 0)


def _rank(table: Fields) -> int | None:
    return table.integer("rank", minimum=1) if table.has("rank") else None


def _selector(table: Fields, key: str) -> Selector | None:
    return read_selector(table, key) if table.has(key) else None
