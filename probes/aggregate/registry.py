"""Aggregators by name, as a bundle or a recipe gives them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from probes.aggregate.heads import AttentionMean, MultiMax, RollingAttentionMax
from probes.aggregate.plain import Last, Max, Mean
from probes.aggregate.protocol import Aggregator
from probes.aggregate.recursive import CUSUM, EMAMax
from probes.aggregate.weighted import SoftmaxMean, TopKMean
from probes.aggregate.windows import RollingMeanMax, SlidingMeanMax

_FAMILIES: dict[str, type[Any]] = {
    family.name: family
    for family in (
        Max,
        Mean,
        Last,
        EMAMax,
        CUSUM,
        SlidingMeanMax,
        RollingMeanMax,
        SoftmaxMean,
        TopKMean,
        AttentionMean,
        RollingAttentionMax,
        MultiMax,
    )
}


def aggregator_from_json(data: Mapping[str, object]) -> Aggregator:
    """
    The aggregator that *data* names, as `Aggregator.to_json` wrote it.

    >>> aggregator_from_json({"name": "ema_max", "alpha": 0.25})
    EMAMax(tokens='all', alpha=0.25)

    Raises:
        ValueError: The name or a parameter is unknown, or has an impossible value.
    """
    name = data.get("name")
    if not isinstance(name, str) or name not in _FAMILIES:
        raise ValueError(f"name: expected one of {sorted(_FAMILIES)}, got {name!r}")
    known = {one.name: one.type for one in fields(_FAMILIES[name])}
    parameters: dict[str, Any] = {}
    for key, value in data.items():
        if key == "name":
            continue
        if key not in known:
            raise ValueError(f"{key}: unknown key; {name} knows {list(known)}")
        parameters[key] = _parameter(key, value, known[key])
    made: Aggregator = _FAMILIES[name](**parameters)
    return made


def _parameter(key: str, value: object, kind: object) -> object:
    if kind is str:
        return value  # The aggregator says which texts it takes.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key}: expected a number, got {value!r}")
    if kind is int:
        if not isinstance(value, int):
            raise ValueError(f"{key}: expected an integer, got {value!r}")
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{key}: expected a finite number, got an integer beyond float64"
        ) from None
