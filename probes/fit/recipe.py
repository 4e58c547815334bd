"""A recipe and two data sets to a bundle: fit on one, calibrate on the other."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probes.bundle import Bundle, new_bundle
from probes.calibration import Calibration, calibrate
from probes.dataset import Dataset
from probes.detector import Detector
from probes.errors import ArtifactError, RecipeError
from probes.fit.benign import fit_diagonal, fit_nearest, fit_que, fit_relative
from probes.fit.evaluate import request_statistics
from probes.fit.labelled import (
    check_hook_points,
    fit_labelled,
    is_streamed,
    negative_of,
    stream_task,
)
from probes.fit.mahalanobis import fit_mahalanobis
from probes.fit.novelty import fit_novelty
from probes.fit.plan import (
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
    NearestPlan,
    QUEPlan,
    RelativePlan,
)
from probes.fit.plan_common import LabelledPlan
from probes.fit.plan_sae import CheckpointPlan
from probes.fit.select import Selector, select_requests
from probes.fit.streamed import fit_streamed
from probes.identity import check_same_identity
from probes.sae import SAEFeatureDetector
from probes.sae_formats import SAE, load_sae
from probes.topk import TopKFeatureDetector

Progress = Callable[[int, int, str], None]


def n_steps(recipe: Recipe) -> int:
    """How many steps `fit_bundle` takes: it fits and calibrates each detector."""
    return 2 * len(recipe.detectors)


def fit_bundle(
    recipe_path: Path,
    fit: Dataset,
    calibration: Dataset,
    progress: Progress | None = None,
    work: Path | None = None,
) -> Bundle:
    """
    Fit and calibrate every detector of a recipe.

    The recipe's alpha is split evenly over the detectors, so that a benign request
    is flagged by any of them with at most that probability (Bonferroni).

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
    alpha, total = recipe.alpha / len(recipe.detectors), n_steps(recipe)

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
    calibrations: dict[str, Calibration] = {}
    for index, plan in enumerate(recipe.detectors):
        try:
            tell(2 * index, total, f"fitting {plan.name}")
            detector = streamed.get(plan.name) or _fit(plan, fit, telling(2 * index))
            tell(2 * index + 1, total, f"calibrating {plan.name}")
            calibrations[plan.name] = _calibrate(plan, detector, calibration, alpha)
        except ValueError as error:
            raise _located(recipe_path, index, error) from error
        detectors.append(detector)
    tell(total, total, "done")
    return new_bundle(
        name=recipe.name,
        version=recipe.version,
        identity=fit.identity,
        detectors=detectors,
        calibrations=calibrations,
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
        case _ as benign:
            return _fit_benign(plan, benign, dataset)


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


def _calibrate(
    plan: DetectorPlan, detector: Detector, dataset: Dataset, alpha: float
) -> Calibration:
    statistics = request_statistics(dataset, detector, _benign(plan, dataset))
    # A request without a row was not scored: it can neither be flagged nor count.
    scored = statistics[np.isfinite(statistics)]
    return calibrate(scored, alpha, dataset.sha256)


def _benign(plan: DetectorPlan, dataset: Dataset) -> list[int]:
    if plan.benign is not None:
        return select_requests(dataset, plan.benign)
    assert isinstance(plan.family, LabelledPlan)  # load_recipe demands benign else
    return negative_of(plan.family, dataset)


def _check_datasets(fit: Dataset, calibration: Dataset) -> None:
    """Raise `ArtifactError` unless they are of one model and share no request."""
    check_same_identity(str(calibration.path), fit.identity, calibration.identity)
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
