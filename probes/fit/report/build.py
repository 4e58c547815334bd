"""Puts the figures of a report together."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probes.bundle import Bundle
from probes.dataset import Dataset
from probes.fit.realised import check_source
from probes.fit.report.examples import Example, examples
from probes.fit.report.layers import LayerSeparation, layer_separations
from probes.fit.report.masked import MaskedDrop, masked_drops
from probes.fit.report.promise import Abstained, Promise, abstentions, promise_of
from probes.fit.report.scored import (
    column_names,
    kind_of,
    labelled_requests,
    score_requests,
)
from probes.fit.report.separation import (
    Correlation,
    Histogram,
    Separation,
    correlations,
    histograms,
    separations,
)
from probes.fit.report.shift import (
    FiringShift,
    ScoreShift,
    firing_shifts,
    score_shifts,
)

Progress = Callable[[int, int, str], None]
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    Every figure of a report; the page and the JSON show the same ones.

    Attributes:
        bundle: Name, version and digest.

        dataset: Path, digest, requests and tokens.

        model: As served when the data set was collected.

        label: By which requests are told apart.

        benign: The value of it that must not be flagged.

        detectors: Name, family and hook points, in order; whether it is a gate.

        promise: Kept or not.

        abstained: Requests without an answer, by kind.

        separations: Each detector, and the set, on each kind.

        histograms: Margins by kind.

        correlations: Between detectors.

        layers: Of a direction fitted at each hook point.

        masked: Without the trigger text; empty where no such data set was given.

        score_shifts: Against the calibration; empty for thresholds set by hand.

        firing_shifts: Against the reference data set; empty without one.

        examples: To look at.
    """

    bundle: dict[str, str]
    dataset: dict[str, Any]
    model: str
    label: str
    benign: str
    detectors: tuple[dict[str, Any], ...]
    promise: Promise
    abstained: tuple[Abstained, ...]
    separations: tuple[Separation, ...]
    histograms: tuple[Histogram, ...]
    correlations: tuple[Correlation, ...]
    layers: tuple[LayerSeparation, ...]
    masked: tuple[MaskedDrop, ...]
    score_shifts: tuple[ScoreShift, ...]
    firing_shifts: tuple[FiringShift, ...]
    examples: tuple[Example, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON has it: numbers that are none are null."""
        found: dict[str, Any] = _without_nan({"schema": SCHEMA, **asdict(self)})
        return found


def build_report(
    bundle: Bundle,
    dataset: Dataset,
    *,
    label: str,
    benign: str,
    masked: Dataset | None = None,
    reference: Dataset | None = None,
    progress: Progress | None = None,
) -> Report:
    """
    Evaluate *bundle* on requests that nothing was fitted, calibrated or chosen on.

    Args:
        bundle: What to evaluate.

        dataset: Labelled requests.

        label: Tells kinds of requests apart.

        benign: The value of *label* that must not be flagged, as text.

        masked: The same requests without their trigger text.

        reference: Earlier requests, whose benign ones say how often SAE features used
            to be on.

        progress: Called with steps done, steps in all, and what comes next.

    Raises:
        ArtifactError: A data set is of another model.
        ValueError: It has no such label, hook points, or benign requests.
    """
    for one in (dataset, masked, reference):
        if one is not None:
            check_source(bundle, one)
    _check_unseen(bundle, dataset)
    tell = progress or (lambda done, total, text: None)

    def telling(step: int, text: str) -> Callable[[int, int], None]:
        return lambda done, of: tell(step, 5, f"{text}, {100 * done // max(of, 1)} %")

    names = column_names(bundle)
    tell(0, 5, "scoring")
    scored = score_requests(bundle, dataset, label, benign, telling(0, "scoring"))
    tell(1, 5, "layers")
    layers = layer_separations(dataset, scored)
    tell(2, 5, "masked requests")
    drops = (
        masked_drops(bundle, dataset, scored, masked, label)
        if masked is not None
        else []
    )
    tell(3, 5, "SAE features")
    firing = (
        firing_shifts(
            bundle,
            (reference, _benign_of(reference, label, benign)),
            (dataset, _benign_of(dataset, label, benign)),
            telling(3, "SAE features"),
        )
        if reference is not None
        else []
    )
    tell(4, 5, "examples")
    report = Report(
        bundle={
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
        },
        dataset={
            "path": str(dataset.path),
            "sha256": dataset.sha256,
            "n_requests": len(scored.indices),
            "n_tokens": int(scored.n_tokens.sum()),
        },
        model=dataset.identity.model,
        label=label,
        benign=benign,
        detectors=tuple(
            {
                "name": d.name,
                "family": type(d).__name__,
                "hook_points": sorted({p.hook_point for p in d.projections}),
                "is_gate": d.name in bundle.calibration.gates,
            }
            for d in bundle.detectors
        ),
        promise=promise_of(bundle, scored),
        abstained=tuple(abstentions(bundle, scored)),
        separations=tuple(separations(scored, names)),
        histograms=tuple(histograms(scored, names)),
        correlations=tuple(correlations(scored, names)),
        layers=tuple(layers),
        masked=tuple(drops),
        score_shifts=tuple(score_shifts(bundle, scored)),
        firing_shifts=tuple(firing),
        examples=tuple(examples(bundle, dataset, scored)),
    )
    tell(5, 5, "done")
    return report


def _benign_of(dataset: Dataset, label: str, benign: str) -> list[int]:
    return [
        i
        for i in labelled_requests(dataset, label, benign)
        if kind_of(dataset, i, label) == benign and dataset.requests[i].n_rows
    ]


def _check_unseen(bundle: Bundle, dataset: Dataset) -> None:
    """Raise `ValueError` if *bundle* was made from these very requests."""
    evidence = bundle.calibration.evidence
    for what, sha256 in (
        ("fitted", bundle.fit_sha256),
        ("calibrated", evidence.dataset_sha256 if evidence else ""),
    ):
        if sha256 == dataset.sha256:
            raise ValueError(
                f"{dataset.path}: expected requests that the bundle has not seen, "
                f"found the data set that it was {what} on"
            )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
