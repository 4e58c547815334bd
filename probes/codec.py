# A family is stored as its dataclass's fields, each by its type: a new family is one
# line in `_FAMILIES`.
"""Detectors as plain data: a JSON table and named arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregator, aggregator_from_json
from probes.arrays import Float32, Int64
from probes.attention import AttentionProbe, MultiMaxProbe
from probes.detector import Detector
from probes.errors import ArtifactError
from probes.fields import Fields
from probes.linear import LinearProbe
from probes.mahalanobis import Mahalanobis
from probes.mlp import MLPProbe
from probes.multilayer import MultiLayerProbe
from probes.sae import SAEFeatureDetector

Arrays = dict[str, NDArray[np.generic]]

_FAMILIES: dict[str, type[Any]] = {
    "linear": LinearProbe,
    "multilayer": MultiLayerProbe,
    "mlp": MLPProbe,
    "attention": AttentionProbe,
    "multi_max": MultiMaxProbe,
    "sae": SAEFeatureDetector,
    "mahalanobis": Mahalanobis,
}


def pack(detector: Detector) -> tuple[dict[str, object], Arrays]:
    """
    The JSON table and the arrays of *detector*, arrays named ``detector/field``.

    Raises:
        ArtifactError: The detector is of no family that can be stored.
    """
    names = [name for name, cls in _FAMILIES.items() if type(detector) is cls]
    if not names:
        raise ArtifactError(
            f"detector {detector.name!r}: expected one of {sorted(_FAMILIES)}, "
            f"got {type(detector).__name__}"
        )
    table: dict[str, object] = {"family": names[0]}
    arrays: Arrays = {}
    for one in _stored(type(detector)):
        value = getattr(detector, one.name)
        if _is_array(one):
            arrays[f"{detector.name}/{one.name}"] = np.ascontiguousarray(value)
        elif one.type is Aggregator:
            table[one.name] = value.to_json()
        else:
            table[one.name] = list(value) if isinstance(value, tuple) else value
    return table, arrays


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
    values: dict[str, object] = {"name": name}
    aggregator: Mapping[str, object] = {}
    for one in _stored(family):
        key = one.name
        if key == "name":
            continue
        if _is_array(one):
            if f"{name}/{key}" not in arrays:
                table.fail(key, f"expected an array {name}/{key}, found none")
            values[key] = arrays.pop(f"{name}/{key}")
        elif one.type is Aggregator:
            aggregator = table.table(key).data
        else:
            values[key] = _plain(table, key, one.type)
    table.close()
    try:
        # A number too large for float32 becomes infinite, and is refused as such.
        with np.errstate(over="ignore", invalid="ignore"):
            made: Detector = family(
                **values, aggregator=aggregator_from_json(aggregator)
            )
            return made
    except ValueError as error:
        raise ArtifactError(f"{table.file}: {table.path}: {error}") from error


def _stored(family: type[Any]) -> Iterator[Field[Any]]:
    """The fields that a detector is made from."""
    return (one for one in fields(family) if one.init)


def _is_array(one: Field[Any]) -> bool:
    return one.type in (Float32, Int64)


def _plain(table: Fields, key: str, kind: object) -> object:
    if kind is str:
        return table.text(key)
    if kind is int:
        return table.integer(key)
    if kind is float:
        return table.number(key)
    if kind == tuple[str, ...]:
        return tuple(table.texts(key))
    raise TypeError(f"{key}: no way to store {kind}")
