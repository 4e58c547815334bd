# A family is stored as its dataclass's fields, each by its type: a new family is one
# line in `_FAMILIES`.
"""Detectors and calibrations as plain data: a JSON table and named arrays."""

from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from types import NoneType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregator, aggregator_from_json
from probes.arrays import Float32, Float64, Int64
from probes.attention import AttentionProbe, MultiMaxProbe
from probes.bilinear import BilinearProbe
from probes.calibration import CalibrationEvidence
from probes.cascade import ActivationCascade, Cascade
from probes.detector import Detector
from probes.ensemble import Ensemble
from probes.errors import ArtifactError
from probes.fields import Fields
from probes.knn import NearestNeighbours
from probes.layer_delta import LayerDelta
from probes.layer_directions import LayerDeltaDirections
from probes.layer_scores import LayerScores
from probes.linear import LinearProbe
from probes.mahalanobis import Mahalanobis
from probes.mlp import MLPProbe
from probes.multilayer import MultiLayerProbe
from probes.reconstruction import SAEReconstruction
from probes.relative import RelativeMahalanobis
from probes.sae import SAEFeatureDetector
from probes.sae_formats.record import SAE
from probes.topk import TopKFeatureDetector

Arrays = dict[str, NDArray[np.generic]]

_FAMILIES: dict[str, type[Any]] = {
    "linear": LinearProbe,
    "multilayer": MultiLayerProbe,
    "mlp": MLPProbe,
    "attention": AttentionProbe,
    "multi_max": MultiMaxProbe,
    "sae": SAEFeatureDetector,
    "topk": TopKFeatureDetector,
    "sae_reconstruction": SAEReconstruction,
    "mahalanobis": Mahalanobis,
    "relative_mahalanobis": RelativeMahalanobis,
    "nearest": NearestNeighbours,
    "bilinear": BilinearProbe,
    "ensemble": Ensemble,
    "cascade": Cascade,
    "activation_cascade": ActivationCascade,
    "layer_delta": LayerDelta,
    "layer_delta_directions": LayerDeltaDirections,
}

_NESTED: dict[object, type[Any]] = {
    SAE: SAE,
    Mahalanobis: Mahalanobis,
    CalibrationEvidence: CalibrationEvidence,
    LayerScores: LayerScores,
}
"""Records that are fields of others."""

_MAX_DEPTH = 4
"""Detectors within detectors: a file may not ask for recursion without end."""


def family_of(detector: Detector) -> str:
    """
    What the family of *detector* is called where it is stored.

    Raises:
        ArtifactError: The detector is of no family that can be stored.
    """
    names = [name for name, cls in _FAMILIES.items() if type(detector) is cls]
    if not names:
        raise ArtifactError(
            f"detector {detector.name!r}: expected one of {sorted(_FAMILIES)}, "
            f"got {type(detector).__name__}"
        )
    return names[0]


def pack(detector: Detector) -> tuple[dict[str, object], Arrays]:
    """
    The JSON table and the arrays of *detector*, arrays named ``detector/field``.

    Raises:
        ArtifactError: The detector is of no family that can be stored.
    """
    arrays: Arrays = {}
    return _pack_detector(detector, detector.name, arrays), arrays


def unpack(table: Fields, arrays: Arrays) -> Detector:
    """
    The detector that `pack` made *table* from; its arrays are taken from *arrays*.

    Raises:
        ArtifactError: A key or array is missing, unknown or not what it must be.
    """
    return _unpack_detector(table, arrays)


def _pack_detector(
    detector: Detector, prefix: str, arrays: Arrays
) -> dict[str, object]:
    family_name = family_of(detector)
    if prefix.count("/") > _MAX_DEPTH:
        raise ArtifactError(
            f"detector {detector.name!r}: expected at most {_MAX_DEPTH} detectors "
            f"around it, got {prefix}"
        )
    return {"family": family_name} | pack_record(detector, prefix, arrays)


def _unpack_detector(
    table: Fields, arrays: Arrays, prefix: str | None = None
) -> Detector:
    """A detector whose arrays are under *prefix*, or under its name."""
    family_name, name = table.text("family"), table.text("name")
    if family_name not in _FAMILIES:
        table.fail(
            "family", f"expected one of {sorted(_FAMILIES)}, found {family_name!r}"
        )
    where = name if prefix is None else prefix
    if where.count("/") > _MAX_DEPTH:
        table.fail("", f"expected at most {_MAX_DEPTH} detectors around it")
    made: Detector = unpack_record(
        _FAMILIES[family_name], table, where, arrays, name=name
    )
    return made


def pack_record(record: Any, prefix: str, arrays: Arrays) -> dict[str, object]:
    """The plain fields of *record*; its arrays go to *arrays*, under *prefix*."""
    table: dict[str, object] = {}
    for one in _stored(type(record)):
        value, where = getattr(record, one.name), f"{prefix}/{one.name}"
        if value is None:
            continue
        if isinstance(value, np.ndarray):
            arrays[where] = np.ascontiguousarray(value)
        elif one.type is Aggregator:
            table[one.name] = value.to_json()
        elif _kind(one) in _NESTED:
            table[one.name] = pack_record(value, where, arrays)
        elif one.type is Detector:
            table[one.name] = _pack_detector(value, where, arrays)
        else:
            table[one.name] = list(value) if isinstance(value, tuple) else value
    return table


def unpack_record(
    cls: type[Any], table: Fields, prefix: str, arrays: Arrays, **known: object
) -> Any:
    """The record that `pack_record` made *table* and the arrays under *prefix* from."""
    values = dict(known)
    for one in _stored(cls):
        if one.name not in known:
            value = _value(one, table, f"{prefix}/{one.name}", arrays)
            if value is not None or _is_optional(one):
                values[one.name] = value
    table.close()
    try:
        # A number too large for float32 becomes infinite, and is refused as such.
        with np.errstate(over="ignore", invalid="ignore"):
            return cls(**values)
    except ValueError as error:
        raise ArtifactError(f"{table.file}: {table.path}: {error}") from error


def _value(one: Field[Any], table: Fields, where: str, arrays: Arrays) -> object:
    key, kind = one.name, _kind(one)
    if kind in (Float32, Float64, Int64):
        if where not in arrays and not _is_optional(one):
            table.fail(key, f"expected an array {where}, found none")
        return arrays.pop(where, None)
    if _is_optional(one) and not table.has(key):
        return None
    if kind is Aggregator:
        nested = table.table(key)
        try:
            return aggregator_from_json(nested.data)
        except ValueError as error:
            raise ArtifactError(f"{table.file}: {table.path}: {error}") from error
    if kind in _NESTED:
        return unpack_record(_NESTED[kind], table.table(key), where, arrays)
    if kind is Detector:
        return _unpack_detector(table.table(key), arrays, where)
    return _READERS[kind](table, key)


_READERS: dict[object, Callable[[Fields, str], object]] = {
    str: Fields.text,
    int: Fields.integer,
    float: Fields.number,
    bool: Fields.truth,
    tuple[str, ...]: lambda table, key: tuple(table.texts(key)),
    tuple[int, ...]: lambda table, key: tuple(table.integers(key)),
    tuple[float, ...]: lambda table, key: tuple(table.numbers(key)),
}
"""How a plain field is read, by its type."""


def _stored(cls: type[Any]) -> Iterator[Field[Any]]:
    """The fields that a record is made from."""
    return (one for one in fields(cls) if one.init)


def _is_optional(one: Field[Any]) -> bool:
    return NoneType in get_args(one.type)


def _kind(one: Field[Any]) -> object:
    """The field's type, without None."""
    kinds = [kind for kind in get_args(one.type) if kind is not NoneType]
    return kinds[0] if _is_optional(one) else one.type
