"""A recipe and two data sets to a bundle: fit on one, calibrate on the other."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from probes.bundle import Bundle, new_bundle
from probes.dataset import Dataset
from probes.detector import Detector
from probes.errors import ArtifactError, RecipeError
from probes.fit.benign import fit_diagonal, fit_nearest, fit_que, fit_relative
from probes.fit.canaries import choose_canaries
from probes.fit.cascade import fit_cascade
from probes.fit.labelled import (
    check_hook_points,
    fit_labelled,
    is_streamed,
    negative_of,
    stream_task,
)
from probes.fit.layer_delta import fit_layer_delta
from probes.fit.mahalanobis import fit_mahalanobis
from probes.fit.novelty import fit_novelty
from probes.fit.plan import (
    CascadePlan,
    DetectorPlan,
    MahalanobisPlan,
    NoveltyPlan,
    Recipe,
    SAEPlan,
    load_recipe,
)
from probes.fit.plan_benign import (
    BenignPlan,
    DiagonalPlan,
    LayerDeltaPlan,
    NearestPlan,
    QUEPlan,
    RelativePlan,
)
from probes.fit.plan_common import LabelledPlan
from probes.fit.plan_sae import CheckpointPlan
from probes.fit.recalibrate import calibrate_on
from probes.fit.select import Selector, select_requests
from probes.fit.streamed import fit_streamed
from probes.hooks import layer_of
from probes.identity import check_same_identity
from probes.sae import SAEFeatureDetector
from probes.sae_formats import SAE, load_sae
from probes.topk import TopKFeatureDetector

Progress = Callable[[int, int, str], None]


def n_steps(recipe: Recipe) -> int:
    """How many steps `fit_bundle` takes: it fits each detector, and calibrates all."""
    return len(recipe.detectors) + 1


def fit_bundle(
    recipe_path: Path,
    fit: Dataset,
    calibration: Dataset,
    progress: Progress | None = None,
    work: Path | None = None,
) -> Bundle:
    """
    Fit and calibrate every detector of a recipe.

    Args:
        recipe_path: A TOML file.

        fit: What the detectors are fitted on.

        calibration: What the thresholds are chosen on: other requests.

        progress: Called with steps done, steps in all, and what comes next.

        work: A folder for the state of fits in passes, so that an interrupted run
            goes on; nothing is left there once it is done.

    Returns:
        The same bundle, to the byte, for the same recipe and data sets.

    Raises:
        RecipeError: The recipe cannot be read, or not carried out on these data.
        ArtifactError: The data sets are of different models, or share a request.
    """
    recipe = load_recipe(recipe_path)
    _check_datasets(fit, calibration)
    tell = progress or (lambda done, total, text: None)
    total = n_steps(recipe)

    def telling(step: int) -> Progress:
        """Progress within one step, as a share."""
        return lambda done, of, text: tell(step, total, f"{text}, {100 * done // of} %")

    streamed = _fit_streamed(
        recipe_path,
        recipe,
        fit,
        work,
        telling(0),
    )
    detectors: list[Detector] = []
    for index, plan in enumerate(recipe.detectors):
        try:
            tell(index, total, f"fitting {plan.name}")
            detector = streamed.get(plan.name) or _fit(plan, fit, telling(index))
        except ValueError as error:
            raise _located(recipe_path, index, error) from error
        detectors.append(detector)
    try:
        benign = benign_of(recipe, calibration)
        made = calibrate_on(
            calibration,
            detectors,
            benign,
            recipe.calibration,
            lambda done, of: tell(
                total - 1, total, f"calibrating, {100 * done // of} %"
            ),
        )
    except ValueError as error:
        raise RecipeError(f"{recipe_path.name}: calibration: {error}") from error
    # Of requests without anything bad in them: their tokens are in the bundle.
    canaries = choose_canaries(
        fit, detectors, benign_of(recipe, fit)
    ) or choose_canaries(calibration, detectors, benign)
    tell(total, total, "done")
    return new_bundle(
        name=recipe.name,
        version=recipe.version,
        identity=fit.identity,
        normalisation=fit.normalisation,
        fit_sha256=fit.sha256,
        detectors=detectors,
        calibration=made,
        canaries=canaries,
    )


def _fit_streamed(
    recipe_path: Path,
    recipe: Recipe,
    dataset: Dataset,
    work: Path | None,
    progress: Progress,
) -> Mapping[str, Detector]:
    """The detectors that are fitted in passes, all of them at once, by name."""
    tasks = []
    for index, plan in enumerate(recipe.detectors):
        if is_streamed(plan):
            try:
                tasks.append(stream_task(plan, dataset))
            except ValueError as error:
                raise _located(recipe_path, index, error) from error
    try:
        return fit_streamed(dataset, tasks, work=work, progress=progress)
    except ValueError as error:
        raise RecipeError(f"{recipe_path.name}: {error}") from error


def _located(recipe_path: Path, index: int, error: ValueError) -> RecipeError:
    return RecipeError(f"{recipe_path.name}: detector[{index}]: {error}")


def _fit(plan: DetectorPlan, dataset: Dataset, progress: Progress) -> Detector:
    check_hook_points(plan, dataset)
    match plan.family:
        case LabelledPlan():
            return fit_labelled(plan, dataset, progress)
        case MahalanobisPlan() as mahalanobis:
            return fit_mahalanobis(
                dataset,
                name=plan.name,
                hook_point=plan.hook_point,
                benign=_benign(plan, dataset),
                aggregator=plan.aggregator,
                rank=mahalanobis.rank,
                max_rows=mahalanobis.max_rows,
                seed=mahalanobis.seed,
            )
        case SAEPlan() as sae:
            return _watch(plan, sae, dataset)
        case NoveltyPlan() as novelty:
            return fit_novelty(
                dataset,
                _load_sae(plan, novelty.checkpoint, dataset),
                name=plan.name,
                benign=_benign(plan, dataset),
                aggregator=plan.aggregator,
                max_features=novelty.max_features,
                seed=novelty.seed,
            )
        case CascadePlan() as cascade:
            return fit_cascade(
                dataset,
                name=plan.name,
                first=_fit_stage(cascade.first, dataset, progress),
                second=_fit_stage(cascade.second, dataset, progress),
                benign=_benign(plan, dataset),
                aggregator=plan.aggregator,
                pass_share=cascade.pass_share,
                max_rows=cascade.max_rows,
                seed=cascade.seed,
            )
        case _ as benign:
            return _fit_benign(plan, benign, dataset)


def _fit_stage(plan: DetectorPlan, dataset: Dataset, progress: Progress) -> Detector:
    """A detector within another: it shares its passes with none."""
    if not is_streamed(plan):
        return _fit(plan, dataset, progress)
    task = stream_task(plan, dataset)
    return fit_streamed(dataset, [task], progress=progress)[plan.name]


def _fit_benign(plan: DetectorPlan, family: BenignPlan, dataset: Dataset) -> Detector:
    common: dict[str, Any] = {
        "name": plan.name,
        "hook_point": plan.hook_point,
        "benign": _benign(plan, dataset),
        "aggregator": plan.aggregator,
        "max_rows": family.max_rows,
        "seed": family.seed,
    }
    match family:
        case LayerDeltaPlan():
            del common["hook_point"]
            several = family.hook_points or tuple(dataset.activations)
            return fit_layer_delta(
                dataset,
                hook_points=sorted(several, key=layer_of),
                rank=family.rank,
                **common,
            )
        case DiagonalPlan():
            return fit_diagonal(dataset, **common)
        case RelativePlan():
            background = _or_all(family.background, dataset)
            return fit_relative(
                dataset, background=background, rank=family.rank, **common
            )
        case NearestPlan():
            return fit_nearest(
                dataset,
                n_coreset=family.n_coreset,
                k=family.k,
                is_normalised=family.is_normalised,
                **common,
            )
        case QUEPlan():
            return fit_que(
                dataset,
                traffic=_or_all(family.traffic, dataset),
                alpha=family.strength,
                rank=family.rank,
                **common,
            )


def _or_all(selector: Selector | None, dataset: Dataset) -> list[int]:
    """The requests of *selector*, or every one."""
    if selector is None:
        return list(range(len(dataset.requests)))
    return select_requests(dataset, selector)


def _watch(plan: DetectorPlan, sae_plan: SAEPlan, dataset: Dataset) -> Detector:
    sae = _load_sae(plan, sae_plan.checkpoint, dataset)
    family = SAEFeatureDetector if sae.is_exact_on_subset else TopKFeatureDetector
    return family.from_sae(
        sae,
        name=plan.name,
        features=sae_plan.features,
        rule=sae_plan.rule,
        feature_weights=sae_plan.feature_weights,
        levels=sae_plan.levels,
        aggregator=plan.aggregator,
    )


def _load_sae(plan: DetectorPlan, checkpoint: CheckpointPlan, dataset: Dataset) -> SAE:
    """The checkpoint, if it is of these hook points and of our model."""
    hook_points = checkpoint.hook_points or (plan.hook_point,)
    sae = load_sae(
        checkpoint.path,
        format=checkpoint.format,
        hook_points=hook_points,
        model_name=checkpoint.model_name or None,
        scale=checkpoint.scale,
        k=checkpoint.k,
    )
    d_model = dataset.activations[hook_points[0]].shape[1]
    if sae.d_model != d_model:
        raise ValueError(f"path: expected d_model {d_model}, got {sae.d_model}")
    # A checkpoint names its model in words, a data set by its files: that both are
    # the same only the operator can say.
    if sae.model_name != checkpoint.model_name:
        raise ValueError(
            f"model_name: expected {sae.model_name!r}, the model that the SAE was "
            f"trained on, to say that it is the data set's, "
            f"{dataset.identity.model!r}; got {checkpoint.model_name!r}"
        )
    return sae


def benign_of(recipe: Recipe, dataset: Dataset) -> list[int]:
    """The requests that the promise of *recipe* rests on."""
    if recipe.benign is not None:
        return select_requests(dataset, recipe.benign)
    each = [set(_benign(plan, dataset)) for plan in recipe.detectors]
    return sorted(set.intersection(*each))


def _benign(plan: DetectorPlan, dataset: Dataset) -> list[int]:
    if plan.benign is not None:
        return select_requests(dataset, plan.benign)
    assert isinstance(plan.family, LabelledPlan)  # load_recipe demands benign else
    return negative_of(plan.family, dataset)


def _check_datasets(fit: Dataset, calibration: Dataset) -> None:
    """Raise `ArtifactError` unless they are of one model and share no request."""
    check_same_identity(str(calibration.path), fit.identity, calibration.identity)
    if fit.normalisation != calibration.normalisation:
        raise ArtifactError(
            f"{calibration.path}: normalisation: expected {fit.normalisation!r}, "
            f"found {calibration.normalisation!r}"
        )
    where = f"{calibration.path}: expected other requests than in {fit.path}, found"
    if fit.sha256 == calibration.sha256:
        raise ArtifactError(f"{where} the same data set")
    fitted_ids = {request.request_id for request in fit.requests}
    for request in calibration.requests:
        if request.request_id in fitted_ids:
            raise ArtifactError(f"{where} {request.request_id!r} in both")
    fitted = _ids_by_tokens(fit)
    for tokens, request_id in _ids_by_tokens(calibration).items():
        if tokens in fitted:
            raise ArtifactError(
                f"{where} the tokens of {fitted[tokens]!r} again in {request_id!r}"
            )


def _ids_by_tokens(dataset: Dataset) -> dict[bytes, str]:
    """Request ids by the SHA-256 of their tokens, where there are and are known."""
    ids = {}
    for index, request in enumerate(dataset.requests):
        tokens = dataset.token_ids[dataset.rows_of(index)]
        if len(tokens) and (tokens >= 0).all():
            ids[hashlib.sha256(tokens.tobytes()).digest()] = request.request_id
    return ids
