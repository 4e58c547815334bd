"""A recipe read from TOML: what to fit, on which labels."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes.aggregate import Aggregator, aggregator_from_json
from probes.detector import check_name
from probes.errors import RecipeError
from probes.fields import Fields
from probes.fit.plan_benign import BENIGN_READERS, BenignPlan
from probes.fit.plan_common import LabelledPlan, read_selector
from probes.fit.plan_labelled import (
    READERS,
    check_family_aggregator,
    default_aggregator,
)
from probes.fit.plan_linear import read_solver
from probes.fit.plan_sae import CheckpointPlan, read_checkpoint
from probes.fit.select import Selector
from probes.hooks import check_hook_point
from probes.rules import RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class MahalanobisPlan:
    """
    A Mahalanobis detector, to be fitted on the benign requests.

    Attributes:
        rank: Directions kept; all where it is None.

        max_rows: At most this many tokens, drawn at random.

        seed: Of that draw.

        is_streamed: Whether all tokens are taken, in passes, and none drawn.
    """

    rank: int | None
    max_rows: int
    seed: int
    is_streamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SAEPlan:
    """
    Features of an SAE; nothing to fit.

    Attributes:
        checkpoint: The SAE.

        features: Which features.

        rule: One of `probes.rules.RULES`.

        feature_weights: Weight of each; 1 where it is None.

        levels: Level of each; 0 where it is None.
    """

    checkpoint: CheckpointPlan
    features: tuple[int, ...]
    rule: str
    feature_weights: tuple[float, ...] | None
    levels: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoveltyPlan:
    """
    Features of an SAE that no benign token switches on.

    Attributes:
        checkpoint: The SAE.

        max_features: At most this many, drawn at random; all where it is None.

        seed: Of that draw.
    """

    checkpoint: CheckpointPlan
    max_features: int | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPlan:
    """
    One detector of a recipe.

    Attributes:
        name: Of the detector.

        hook_point: Where it reads; "" where its family reads several.

        aggregator: Token evidence to a request statistic.

        benign: Requests that its threshold is chosen on; where it is None, the
            negative ones of a probe.

        family: What kind it is, and how it is made.
    """

    name: str
    hook_point: str
    aggregator: Aggregator
    benign: Selector | None
    family: LabelledPlan | MahalanobisPlan | SAEPlan | NoveltyPlan | BenignPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """
    What a bundle is made from.

    Attributes:
        name: Of the bundle.

        version: Of the bundle.

        alpha: False-flag rate of a benign request, over all detectors together.

        detectors: In order.
    """

    name: str
    version: str
    alpha: float
    detectors: tuple[DetectorPlan, ...]


def load_recipe(path: Path) -> Recipe:
    """
    Read the recipe at *path*.

    Raises:
        RecipeError: It is not TOML, or a key is missing, unknown or impossible;
            ``recipe.toml: detector[1].tokens: ...``, counted from 0.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path.name}: expected TOML, found {error}") from error
    table = Fields(path.name, "", data, RecipeError)
    name, version = table.text("name"), table.text("version")
    _check(table, "name", check_name, name)
    alpha = table.number("alpha")
    if not 0 < alpha < 1:
        table.fail("alpha", f"expected a number in (0, 1), found {alpha}")
    items = table.tables("detector")
    table.close()
    detectors = tuple(_read_detector(item, path.parent) for item in items)
    names = [detector.name for detector in detectors]
    if not names or len(set(names)) < len(names):
        table.fail("detector", f"expected different names, found {names}")
    return Recipe(name=name, version=version, alpha=alpha, detectors=detectors)


def _read_detector(table: Fields, folder: Path) -> DetectorPlan:
    name, family_name = table.text("name"), table.text("family")
    _check(table, "name", check_name, name)
    hook_point = ""
    if family_name != "all_layers" and not _is_crosscoder(table, family_name):
        hook_point = table.text("hook_point")
        _check(table, "hook_point", check_hook_point, hook_point)
    aggregator = _read_aggregator(table, family_name)
    check_family_aggregator(table, family_name, aggregator)
    benign = read_selector(table, "benign") if table.has("benign") else None
    plan: LabelledPlan | MahalanobisPlan | SAEPlan | NoveltyPlan | BenignPlan
    match family_name:
        case "mahalanobis":
            plan = _read_mahalanobis(table)
        case "sae":
            plan = _read_sae(table, folder)
        case "sae_novelty":
            plan = _read_novelty(table, folder)
        case _ if family_name in READERS:
            plan = READERS[family_name](table)
        case _ if family_name in BENIGN_READERS:
            plan = BENIGN_READERS[family_name](table)
        case _:
            known = sorted(
                [*READERS, *BENIGN_READERS, "mahalanobis", "sae", "sae_novelty"]
            )
            table.fail("family", f"expected one of {known}, found {family_name!r}")
    if benign is None and not isinstance(plan, LabelledPlan):
        table.fail("benign", "expected a table, found nothing")
    table.close()
    return DetectorPlan(
        name=name,
        hook_point=hook_point,
        aggregator=aggregator,
        benign=benign,
        family=plan,
    )


def _is_crosscoder(table: Fields, family_name: str) -> bool:
    return family_name == "sae" and table.has("hook_points")


def _read_mahalanobis(table: Fields) -> MahalanobisPlan:
    rank = table.integer("rank", minimum=1) if table.has("rank") else None
    if read_solver(table) == "stream":
        return MahalanobisPlan(rank=rank, max_rows=0, seed=0, is_streamed=True)
    max_rows = table.integer("max_rows", 50_000, minimum=2)
    return MahalanobisPlan(rank=rank, max_rows=max_rows, seed=table.integer("seed", 0))


def _read_sae(table: Fields, folder: Path) -> SAEPlan:
    checkpoint = read_checkpoint(table, folder)
    features: list[int] = []
    for item in table.items("features"):
        if isinstance(item, bool) or not isinstance(item, int):
            table.fail("features", f"expected integers, found {item!r}")
        features.append(item)
    rule = table.text("rule", RULES[0])
    if rule not in RULES:
        table.fail("rule", f"expected one of {list(RULES)}, found {rule!r}")
    return SAEPlan(
        checkpoint=checkpoint,
        features=tuple(features),
        rule=rule,
        feature_weights=_numbers(table, "feature_weights"),
        levels=_numbers(table, "levels"),
    )


def _read_novelty(table: Fields, folder: Path) -> NoveltyPlan:
    most = None
    if table.has("max_features"):
        most = table.integer("max_features", minimum=1)
    return NoveltyPlan(
        checkpoint=read_checkpoint(table, folder),
        max_features=most,
        seed=table.integer("seed", 0),
    )


def _numbers(table: Fields, key: str) -> tuple[float, ...] | None:
    if not table.has(key):
        return None
    numbers: list[float] = []
    for item in table.items(key):
        if isinstance(item, bool) or not isinstance(item, int | float):
            table.fail(key, f"expected numbers, found {item!r}")
        try:
            numbers.append(float(item))
        except OverflowError:
            table.fail(key, "found an integer beyond float64")
    return tuple(numbers)


def _read_aggregator(table: Fields, family_name: str) -> Aggregator:
    if not table.has("aggregator"):
        return default_aggregator(family_name)
    nested = table.table("aggregator")
    try:
        return aggregator_from_json(nested.data)
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        nested.fail(key, problem)


def _check(table: Fields, key: str, check: Callable[[str], None], value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        table.fail(key, str(error).partition(": ")[2])
