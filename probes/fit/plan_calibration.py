"""How a detector set is calibrated: a recipe's table ``[calibration]``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from probes.calibration.record import BUDGETS, GUARANTEES, check_alpha
from probes.fields import Fields
from probes.fit.intervals import exactly
from probes.fit.plan_common import read_selector, recipe_fields
from probes.fit.select import Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """
    How a detector set is calibrated.

    Attributes:
        alpha: Promised rate of flagged benign requests, in (0, 1).

        budget: One of `probes.calibration.record.BUDGETS`.

        shares: Of "weighted", by detector, in order; above 0, 1 in all.

        guarantee: One of `probes.calibration.record.GUARANTEES`.

        confidence: Of "pac", over all bins together.

        gates: Names of the detectors that turn requests away instead of flagging them.

        gate_share: Of benign requests, those that each of them turns away at most.

        learn_share: Of the benign requests, for bins, centres and scales.

        check_share: Of them, to check the promise on.

        seed: Of the split.
    """

    alpha: float
    budget: str = "learnt"
    shares: tuple[float, ...] = ()
    guarantee: str = "marginal"
    confidence: float = 0.95
    gates: tuple[str, ...] = ()
    gate_share: float = 0.01
    learn_share: float = 0.25
    check_share: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not 0 < self.gate_share < 1:
            raise ValueError(
                f"gate_share: expected a number in (0, 1), got {self.gate_share}"
            )
        for name, choices in (("budget", BUDGETS), ("guarantee", GUARANTEES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: expected one of {list(choices)}, "
                    f"got {getattr(self, name)!r}"
                )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence: expected a number in (0, 1), got {self.confidence}"
            )
        if not (0 < self.learn_share and 0 <= self.check_share):
            raise ValueError("learn_share, check_share: expected none below 0")
        if self.learn_share + self.check_share >= 1:
            raise ValueError(
                f"learn_share, check_share: expected less than 1 together, "
                f"got {self.learn_share + self.check_share:g}"
            )
        is_weighted = self.budget == "weighted"
        if is_weighted != bool(self.shares):
            raise ValueError(
                f"shares: expected {'some' if is_weighted else 'none'} for budget "
                f"{self.budget!r}, got {list(self.shares)}"
            )
        is_whole = math.isclose(sum(self.shares), 1, abs_tol=1e-9)
        if is_weighted and not (min(self.shares) > 0 and is_whole):
            raise ValueError(
                f"shares: expected ones above 0 that are 1 together, "
                f"got {list(self.shares)}"
            )

    def rates_of(self, detectors: Sequence[str]) -> list[Fraction]:
        """The rate at which each detector may flag, or turn away, if it were alone."""
        n_flagging = sum(name not in self.gates for name in detectors)
        shares = self._shares(n_flagging)
        return [
            exactly(self.gate_share)
            if name in self.gates
            else exactly(self.alpha) * next(shares)
            for name in detectors
        ]

    def _shares(self, n_flagging: int) -> Iterator[Fraction]:
        """Of alpha, what each detector that flags may spend."""
        if self.budget == "learnt":
            return iter([Fraction(1)] * n_flagging)
        if self.budget == "even":
            return iter([Fraction(1, max(n_flagging, 1))] * n_flagging)
        if len(self.shares) != n_flagging:
            raise ValueError(
                f"shares: expected one of each of {n_flagging} detectors, "
                f"got {len(self.shares)}"
            )
        return iter([exactly(share) for share in self.shares])

    def confidence_each(self, n_bins: int, n_detectors: int) -> float:
        """What each level must hold with, so that all do; 0 of a marginal promise."""
        if self.guarantee == "marginal":
            return 0.0
        n_levels = n_bins * (1 if self.budget == "learnt" else n_detectors)
        return 1 - (1 - self.confidence) / n_levels


def load_calibration(
    path: Path, detectors: Sequence[str]
) -> tuple[CalibrationPlan, Selector]:
    """
    The plan in the TOML file at *path*, and which requests are benign.

    The file may be a whole recipe: what it would fit is not looked at.

    Args:
        path: Has a table ``[calibration]``, which has to say ``benign``.

        detectors: Names, in order.

    Raises:
        RecipeError: It is not TOML, or a key is missing, unknown or impossible.
    """
    table = recipe_fields(path)
    for key in ("name", "version", "detector"):
        table.data.pop(key, None)
    plan, benign = read_calibration(table.table("calibration"), detectors)
    table.close()
    if benign is None:
        table.fail("calibration.benign", "expected a table, found nothing")
    return plan, benign


def read_calibration(
    table: Fields, detectors: Sequence[str]
) -> tuple[CalibrationPlan, Selector | None]:
    """
    The plan in *table*, and which requests are benign where it says so.

    Args:
        table: A recipe's ``[calibration]``.

        detectors: Names, in order.
    """
    benign = read_selector(table, "benign") if table.has("benign") else None
    default = {one.name: one.default for one in fields(CalibrationPlan)}
    values: dict[str, object] = {"alpha": table.number("alpha")}
    for key in ("budget", "guarantee"):
        values[key] = table.text(key, str(default[key]))
    for key in ("confidence", "gate_share", "learn_share", "check_share"):
        values[key] = table.number(key, float(str(default[key])))
    values["seed"] = table.integer("seed", 0)
    if table.has("gates"):
        values["gates"] = tuple(_names(table, "gates", detectors))
    if table.has("shares"):
        values["shares"] = _read_shares(table, detectors, values.get("gates", ()))
    table.close()
    try:
        return CalibrationPlan(**values), benign  # type: ignore[arg-type]
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        table.fail(key, problem)


def _names(table: Fields, key: str, detectors: Sequence[str]) -> list[str]:
    names = table.texts(key)
    for name in names:
        if name not in detectors:
            table.fail(key, f"expected some of {list(detectors)}, found {name!r}")
    if len(set(names)) == len(detectors):
        table.fail(key, "expected a detector that is none of them")
    return names


def _read_shares(
    table: Fields, detectors: Sequence[str], gates: object
) -> tuple[float, ...]:
    nested = table.table("shares")
    assert isinstance(gates, tuple)
    shares = [nested.number(name) for name in detectors if name not in gates]
    nested.close()
    return tuple(shares)
