"""A recipe read from TOML: what to fit, on which labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes.aggregate import Aggregator, aggregator_from_json
from probes.detector import check_name
from probes.fields import Fields
from probes.fit.plan_benign import BENIGN_READERS, BenignPlan
from probes.fit.plan_calibration import CalibrationPlan, read_calibration
from probes.fit.plan_common import LabelledPlan, read_selector, recipe_fields
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

SEVERAL_HOOK_POINTS = ("all_layers", "cascade", "ensemble", "layer_delta")
"""Families that say in other keys where they read."""


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
class CascadePlan:
    """
    Two detectors, one behind the other; see `probes.fit.cascade.fit_cascade`.

    Attributes:
        first: The stage that lets most benign tokens through.

        second: The stage that looks at the others.
    """

    first: "DetectorPlan"
    second: "DetectorPlan"
    pass_share: float
    max_rows: int
    seed: int


FamilyPlan = (
    LabelledPlan | MahalanobisPlan | SAEPlan | NoveltyPlan | BenignPlan | CascadePlan
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPlan:
    """
    One detector of a recipe.

    Attributes:
        name: Of the detector.

        hook_point: Where it reads; "" where its family reads several.

        aggregator: Token evidence to a request statistic.

        benign: Requests that are benign to it: what an anomaly detector is fitted on,
            and what the set is calibrated on; where it is None, a probe's negatives.

        family: What kind it is, and how it is made.
    """

    name: str
    hook_point: str
    aggregator: Aggregator
    benign: Selector | None
    family: FamilyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """
    What a bundle is made from.

    Attributes:
        name: Of the bundle.

        version: Of the bundle.

        detectors: In order.

        calibration: What is promised of all of them together.

        benign: Requests that the promise rests on; where it is None, those that are
            benign to every detector.
    """

    name: str
    version: str
    detectors: tuple[DetectorPlan, ...]
    calibration: CalibrationPlan
    benign: Selector | None


def load_recipe(path: Path) -> Recipe:
    """
    Read the recipe at *path*.

    Raises:
        RecipeError: It is not TOML, or a key is missing, unknown or impossible;
            ``recipe.toml: detector[1].tokens: ...``, counted from 0.
    """
    table = recipe_fields(path)
    name, version = table.text("name"), table.text("version")
    _check(table, "name", check_name, name)
    items, calibration_table = table.tables("detector"), table.table("calibration")
    table.close()
    detectors = tuple(_read_detector(item, path.parent) for item in items)
    names = [detector.name for detector in detectors]
    if not names or len(set(names)) < len(names):
        table.fail("detector", f"expected different names, found {names}")
    calibration, benign = read_calibration(calibration_table, names)
    return Recipe(
        name=name,
        version=version,
        detectors=detectors,
        calibration=calibration,
        benign=benign,
    )


def _read_detector(
    table: Fields, folder: Path, usual_benign: Selector | None = None
) -> DetectorPlan:
    name, family_name = table.text("name"), table.text("family")
    _check(table, "name", check_name, name)
    hook_point = ""
    if family_name not in SEVERAL_HOOK_POINTS and not _is_crosscoder(
        table, family_name
    ):
        hook_point = table.text("hook_point")
        _check(table, "hook_point", check_hook_point, hook_point)
    aggregator = _read_aggregator(table, family_name)
    check_family_aggregator(table, family_name, aggregator)
    benign = read_selector(table, "benign") if table.has("benign") else usual_benign
    plan: FamilyPlan
    match family_name:
        case "cascade":
            plan = _read_cascade(table, folder, name, aggregator, benign)
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
            others = ("cascade", "mahalanobis", "sae", "sae_novelty")
            known = sorted([*READERS, *BENIGN_READERS, *others])
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


def _read_cascade(
    table: Fields,
    folder: Path,
    name: str,
    aggregator: Aggregator,
    benign: Selector | None,
) -> CascadePlan:
    stages: list[DetectorPlan] = []
    for key in ("first", "second"):
        nested = table.table(key)
        usual = default_aggregator(str(nested.data.get("family"))).to_json()
        nested.data.setdefault("name", f"{name}-{key}"[:64])
        nested.data.setdefault("aggregator", usual | {"tokens": aggregator.tokens})
        stage = _read_detector(nested, folder, benign)
        found = stage.aggregator
        if (found.tokens, found.n_columns) != (aggregator.tokens, 1):
            nested.fail(
                "aggregator",
                f"expected one for a single column of evidence and "
                f"{aggregator.tokens!r} tokens, found {found.to_json()}",
            )
        stages.append(stage)
    pass_share = table.number("pass_share", 0.9)
    if not 0 < pass_share < 1:
        table.fail("pass_share", f"expected a number in (0, 1), found {pass_share}")
    return CascadePlan(
        first=stages[0],
        second=stages[1],
        pass_share=pass_share,
        max_rows=table.integer("max_rows", 20_000, minimum=1),
        seed=table.integer("seed", 0),
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
    rule = table.text("rule", RULES[0])
    if rule not in RULES:
        table.fail("rule", f"expected one of {list(RULES)}, found {rule!r}")
    return SAEPlan(
        checkpoint=checkpoint,
        features=tuple(table.integers("features")),
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
    return tuple(table.numbers(key)) if table.has(key) else None


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
