"""Detectors as plain data: a JSON table and named arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import aggregator_from_json
from probes.detector import Detector
from probes.errors import ArtifactError
from probes.fields import Fields
from probes.linear import LinearProbe
from probes.mahalanobis import Mahalanobis
from probes.sae import SAEFeatureDetector

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """
    How one family is stored: its class, and which fields are what.

    Every family also has a name, a hook point and an aggregator.
    """

    cls: type
    build: Callable[..., Detector]
    arrays: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


_FAMILIES = {
    "linear": _Family(
        cls=LinearProbe, build=LinearProbe, arrays=("weight",), numbers=("bias",)
    ),
    "sae": _Family(
        cls=SAEFeatureDetector,
        build=SAEFeatureDetector,
        arrays=("encoder", "bias", "thresholds", "features", "feature_weights"),
        texts=("activation",),
    ),
    "mahalanobis": _Family(
        cls=Mahalanobis,
        build=Mahalanobis,
        arrays=("mean", "directions", "variances"),
        numbers=("residual_variance",),
    ),
}


def pack(detector: Detector) -> tuple[dict[str, object], Arrays]:
    """
    The JSON table and the arrays of *detector*, arrays named ``detector/field``.

    Raises:
        ArtifactError: The detector is of no family that can be stored.
    """
    for family_name, family in _FAMILIES.items():
        if isinstance(detector, family.cls):
            table: dict[str, object] = {
                "family": family_name,
                "name": detector.name,
                "hook_point": detector.projections[0].hook_point,
                "aggregator": detector.aggregator.to_json(),
            }
            for key in (*family.numbers, *family.texts):
                table[key] = getattr(detector, key)
            arrays = {
                f"{detector.name}/{key}": np.ascontiguousarray(getattr(detector, key))
                for key in family.arrays
            }
            return table, arrays
    raise ArtifactError(
        f"detector {detector.name!r}: expected one of {sorted(_FAMILIES)}, "
        f"got {type(detector).__name__}"
    )


def unpack(table: Fields, arrays: Arrays) -> Detector:
    """
    The detector that `pack` made *table* from; its arrays are taken from *arrays*.

    Raises:
        ArtifactError: A key or array is missing, unknown or not what it must be.
    """
    family_name, name = table.text("family"), table.text("name")
    if family_name not in _FAMILIES:
        table.fail(
            "family", f"expected one of {sorted(_FAMILIES)}, found {family_name!r}"
        )
    family = _FAMILIES[family_name]
    values: dict[str, object] = {"name": name, "hook_point": table.text("hook_point")}
    values |= {key: table.number(key) for key in family.numbers}
    values |= {key: table.text(key) for key in family.texts}
    for key in family.arrays:
        if f"{name}/{key}" not in arrays:
            table.fail(key, f"expected an array {name}/{key}, found none")
        values[key] = arrays.pop(f"{name}/{key}")
    aggregator = table.table("aggregator")
    table.close()
    return _build(family, values, table, aggregator.data)


def _build(
    family: _Family,
    values: dict[str, object],
    table: Fields,
    aggregator: Mapping[str, object],
) -> Detector:
    try:
        # A number too large for float32 becomes infinite, and is refused as such.
        with np.errstate(over="ignore", invalid="ignore"):
            return family.build(**values, aggregator=aggregator_from_json(aggregator))
    except ValueError as error:
        raise ArtifactError(f"{table.file}: {table.path}: {error}") from error
