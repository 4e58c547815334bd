"""Fits what a recipe plans on requests of two kinds, and what it plans in passes."""

from probes.aggregate import (
    AttentionMean,
    MultiMax,
    RollingAttentionMax,
    SlidingMeanMax,
)
from probes.dataset import Dataset
from probes.detector import Detector
from probes.fit.bags import Bags, rows_each
from probes.fit.directions import fit_contrast, fit_persona
from probes.fit.ensemble import fit_layer_ensemble
from probes.fit.logistic import fit_logistic
from probes.fit.moments import Progress
from probes.fit.nonlinear import Task, fit_attention, fit_mlp, fit_multi_max, fit_swim
from probes.fit.plan import CascadePlan, DetectorPlan, MahalanobisPlan, SAEPlan
from probes.fit.plan_benign import LayerDeltaPlan
from probes.fit.plan_common import LabelledPlan
from probes.fit.plan_ensemble import EnsemblePlan
from probes.fit.plan_linear import ContrastPlan, LogisticPlan, PersonaPlan, StreamPlan
from probes.fit.plan_trained import NetworkPlan, SwimPlan
from probes.fit.select import select_requests
from probes.fit.streamed import StreamTask
from probes.hooks import layer_of


def fit_labelled(
    plan: DetectorPlan, dataset: Dataset, progress: Progress | None = None
) -> Detector:
    """
    Fit the detector of *plan*, which is not one that is fitted in passes.

    Raises:
        ValueError: The data set cannot carry the plan out.
    """
    family = plan.family
    assert isinstance(family, LabelledPlan)
    check_hook_points(plan, dataset)
    positive, negative = kinds_of(family, dataset)
    match family:
        case EnsemblePlan(members=members, options=ensemble):
            return fit_layer_ensemble(
                dataset,
                name=plan.name,
                hook_points=members,
                positive=positive,
                negative=negative,
                aggregator=plan.aggregator,
                options=ensemble,
                progress=progress,
            )
        case LogisticPlan(options=options):
            return fit_logistic(
                dataset,
                name=plan.name,
                hook_point=plan.hook_point,
                positive=positive,
                negative=negative,
                aggregator=plan.aggregator,
                options=options,
            )
        case ContrastPlan(options=contrast):
            return fit_contrast(
                dataset,
                name=plan.name,
                hook_point=plan.hook_point,
                positive=positive,
                negative=negative,
                aggregator=plan.aggregator,
                options=contrast,
            )
        case PersonaPlan(options=persona):
            return fit_persona(
                dataset,
                name=plan.name,
                hook_point=plan.hook_point,
                positive=positive,
                negative=negative,
                aggregator=plan.aggregator,
                options=persona,
            )
    task = Task(
        dataset=dataset,
        name=plan.name,
        hook_point=plan.hook_point,
        positive=positive,
        negative=negative,
    )
    return _train(plan, task, progress)


def _train(plan: DetectorPlan, task: Task, progress: Progress | None) -> Detector:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"training {plan.name}")

    match plan.family, plan.aggregator:
        case SwimPlan(temperature=tau, options=training), SlidingMeanMax() as window:
            return fit_swim(
                task, window, temperature=tau, options=training, progress=tell
            )
        case (
            NetworkPlan(kind="attention", options=options),
            AttentionMean() | RollingAttentionMax() as attention,
        ):
            return fit_attention(task, attention, options, tell)
        case NetworkPlan(kind="multi_max", options=options), MultiMax() as heads:
            return fit_multi_max(task, heads, options, tell)
        case NetworkPlan(kind="mlp", options=options), one:
            return fit_mlp(task, one, options, tell)
    raise TypeError(f"{plan.name}: no way to fit {plan.family}")


def is_streamed(plan: DetectorPlan) -> bool:
    """Whether *plan* is fitted in passes, with others at once."""
    family = plan.family
    return isinstance(family, StreamPlan) or (
        isinstance(family, MahalanobisPlan) and family.is_streamed
    )


def stream_task(plan: DetectorPlan, dataset: Dataset) -> StreamTask:
    """
    What `fit_streamed` is to fit for *plan*.

    Raises:
        ValueError: The data set cannot carry the plan out.
    """
    check_hook_points(plan, dataset)
    family, counted = plan.family, plan.aggregator.tokens
    if isinstance(family, MahalanobisPlan):
        assert plan.benign is not None  # load_recipe demands it
        benign = rows_each(dataset, select_requests(dataset, plan.benign), counted)
        return StreamTask(
            name=plan.name,
            kind="mahalanobis",
            hook_points=(plan.hook_point,),
            positive=(),
            negative=benign,
            aggregator=plan.aggregator,
            rank=family.rank,
        )
    assert isinstance(family, StreamPlan)
    positive, negative = kinds_of(family, dataset)
    bags = Bags.of(
        dataset,
        name=plan.name,
        positive=positive,
        negative=negative,
        counted=counted,
        tokens=family.tokens,
    )
    hook_points = family.hook_points or tuple(sorted(dataset.activations, key=layer_of))
    return StreamTask(
        name=plan.name,
        kind=family.kind,
        hook_points=(plan.hook_point,) if family.hook_points is None else hook_points,
        positive=bags.positive,
        negative=bags.negative,
        aggregator=plan.aggregator,
        logistic=family.options,
    )


def kinds_of(plan: LabelledPlan, dataset: Dataset) -> tuple[list[int], list[int]]:
    """Indices of the positive requests and of the negative ones."""
    return select_requests(dataset, plan.positive), negative_of(plan, dataset)


def negative_of(plan: LabelledPlan, dataset: Dataset) -> list[int]:
    """Indices of the negative requests: all others where the plan names none."""
    if plan.negative is not None:
        return select_requests(dataset, plan.negative)
    return select_requests(dataset, plan.positive, is_negated=True)


def check_hook_points(plan: DetectorPlan, dataset: Dataset) -> None:
    """Raise `ValueError` unless *dataset* has what *plan* reads."""
    key, wanted = "hook_point", [plan.hook_point]
    match plan.family:
        case (
            StreamPlan(hook_points=tuple(several)) | LayerDeltaPlan(hook_points=several)
        ):
            key, wanted = "hook_points", [*several]
        case SAEPlan(checkpoint=checkpoint) if checkpoint.hook_points:
            key, wanted = "hook_points", [*checkpoint.hook_points]
        case EnsemblePlan(members=members):
            key, wanted = "members", [*members]
        case CascadePlan():
            wanted = []  # its stages are checked as they are fitted
    for hook_point in wanted:
        if hook_point not in dataset.activations:
            raise ValueError(
                f"{key}: expected one of {sorted(dataset.activations)}, "
                f"got {hook_point!r}"
            )
