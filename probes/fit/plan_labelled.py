"""Which families a recipe can ask for, and the aggregators that each can have."""

from collections.abc import Callable

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
from probes.fit.plan_common import LabelledPlan
from probes.fit.plan_ensemble import read_ensemble
from probes.fit.plan_linear import (
    read_all_layers,
    read_contrast,
    read_lda,
    read_logistic,
    read_mass_mean,
    read_persona,
)
from probes.fit.plan_trained import read_attention, read_mlp, read_multi_max, read_swim

READERS: dict[str, Callable[[Fields], LabelledPlan]] = {
    "logistic": read_logistic,
    "mass_mean": read_mass_mean,
    "lda": read_lda,
    "contrast": read_contrast,
    "persona": read_persona,
    "all_layers": read_all_layers,
    "ensemble": read_ensemble,
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
