"""Recipes of linear probes at several hook points, combined."""

from dataclasses import dataclass

from probes.fields import Fields
from probes.fit.ensemble import EnsembleOptions
from probes.fit.plan_common import LabelledPlan, made, read_hook_points, read_kinds
from probes.fit.plan_linear import read_options


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsemblePlan(LabelledPlan):
    """
    A multi-layer ensemble.

    Attributes:
        members: Where each of them reads.

        options: How they are fitted and combined.
    """

    members: tuple[str, ...]
    options: EnsembleOptions


def read_ensemble(table: Fields) -> EnsemblePlan:
    """Read ``family = "ensemble"``."""
    positive, negative = read_kinds(table)
    members = read_hook_points(table, "members")
    if not members:
        table.fail("members", "expected a list, found nothing")
    usual = EnsembleOptions()
    kind = table.text("fit", usual.kind)
    combination = table.text("combination", usual.combination)
    held_out = table.number("held_out", usual.held_out)
    logistic = read_options(table)
    return EnsemblePlan(
        positive=positive,
        negative=negative,
        members=members,
        options=made(
            table,
            lambda: EnsembleOptions(
                kind=kind,
                combination=combination,
                held_out=held_out,
                logistic=logistic,
            ),
        ),
    )
