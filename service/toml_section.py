"""A section of a TOML file as a frozen dataclass, and nothing unknown."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

_T = TypeVar("_T")


class ConfigError(ValueError):
    """
    The configuration cannot be used: the operator's to mend.

    One line: file, key, what was expected, what was found. Nothing was started.
    """


def section_of(cls: type[_T], table: object, where: str) -> _T:
    """
    Return *table* as a *cls*, whose fields say type, default and range.

    Raises:
        ConfigError: It is no table, or has a key or a value that is not expected.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a section, got {table!r}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    refuse_unknown(table, known, f"{where}.", "key")
    values: dict[str, Any] = {}
    for key, value in table.items():
        default = known[key].default
        assert default is not MISSING, "every key has a default"
        values[key] = _typed(value, type(default), f"{where}.{key}")
        _check_range(values[key], known[key].metadata, f"{where}.{key}")
    return cls(**values)


def _typed(value: object, kind: type, where: str) -> object:
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not kind:  # bool is an int to isinstance
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _check_range(value: Any, limits: Any, where: str) -> None:
    tests: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "least": ("at least", lambda limit: value >= limit),
        "most": ("at most", lambda limit: value <= limit),
        "below": ("less than", lambda limit: value < limit),
        "above": ("more than", lambda limit: limit < value < float("inf")),
        "choices": ("one of", lambda limit: value in limit),
    }
    for name, limit in limits.items():
        words, is_fine = tests[name]
        if not is_fine(limit):
            raise ConfigError(f"{where}: expected {words} {limit}, got {value!r}")


def refuse_unknown(
    table: dict[str, Any], known: dict[str, Any], where: str, what: str
) -> None:
    """Raise `ConfigError` for a key that is not *known*."""
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{where}{key}: unknown {what}, expected one of {', '.join(known)}"
            )
