"""Boundaries for detectors that are there already."""

from collections.abc import Sequence
from pathlib import Path

from probes.bundle import Bundle, new_bundle
from probes.calibration import Calibration
from probes.dataset import Dataset
from probes.detector import Detector
from probes.errors import ArtifactError, RecipeError
from probes.fit.calibrate import calibrate
from probes.fit.canaries import choose_canaries
from probes.fit.plan_calibration import CalibrationPlan, load_calibration
from probes.fit.realised import check_source
from probes.fit.select import select_requests
from probes.fit.trajectories import Progress, trajectories


def calibrate_on(
    dataset: Dataset,
    detectors: Sequence[Detector],
    benign: Sequence[int],
    plan: CalibrationPlan,
    progress: Progress | None = None,
) -> Calibration:
    """
    Score benign requests and choose boundaries, in bounded memory.

    Args:
        dataset: Has activations at the hook points of *detectors*.

        detectors: A detector set.

        benign: Which requests the promise rests on.

        plan: What to promise.

        progress: Called with requests done and requests in all.

    Raises:
        ValueError: There are too few requests for the promise.
    """
    found = trajectories(dataset, detectors, benign, progress)
    names = [detector.name for detector in detectors]
    return calibrate(found, names, plan, dataset.sha256)


def recalibrate(
    bundle: Bundle,
    dataset: Dataset,
    recipe_path: Path,
    *,
    version: str,
    progress: Progress | None = None,
) -> Bundle:
    """
    The detectors of *bundle*, held against boundaries chosen on *dataset*.

    Args:
        bundle: Any bundle.

        dataset: Requests of the bundle's model that nothing was fitted on.

        recipe_path: A TOML file with ``[calibration]``; see `load_calibration`.

        version: Of the bundle that is made.

        progress: Called with requests done and requests in all.

    Returns:
        The same bundle, to the byte, for the same arguments; the one that fitting
        makes with the same detectors. A bundle without canaries is given some.

    Raises:
        RecipeError: The recipe cannot be read, or not carried out on these data.
        ArtifactError: The data set is of another model, or the one fitted on.
    """
    names = [detector.name for detector in bundle.detectors]
    plan, selector = load_calibration(recipe_path, names)
    check_source(bundle, dataset)
    if dataset.sha256 == bundle.fit_sha256:
        raise ArtifactError(
            f"{dataset.path}: expected other requests than those that bundle "
            f"{bundle.name!r} was fitted on, found the same data set"
        )
    benign = select_requests(dataset, selector)
    try:
        made = calibrate_on(dataset, bundle.detectors, benign, plan, progress)
    except ValueError as error:
        raise RecipeError(f"{recipe_path.name}: calibration: {error}") from error
    canaries = bundle.canaries or choose_canaries(dataset, bundle.detectors, benign)
    return new_bundle(
        name=bundle.name,
        version=version,
        identity=bundle.identity,
        normalisation=bundle.normalisation,
        fit_sha256=bundle.fit_sha256,
        detectors=bundle.detectors,
        calibration=made,
        canaries=canaries,
    )
