"""Reads a JSON or TOML table key by key; what is missing or unknown is an error."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from probes.errors import ArtifactError


@dataclass(slots=True)
class Fields:
    """
    A table being read.

    Attributes:
        file: Where it was read from, for messages.

        path: Where in the file this table is, e.g. ``"detector[1]"``.

        data: The table; keys are removed as they are taken.

        error: What to raise.
    """

    file: str
    path: str
    data: dict[str, object]
    error: type[ValueError] = field(default=ArtifactError)

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise: file, path, *key* and *problem*, in one line."""
        where = ".".join(part for part in (self.path, key) if part)
        line = f"{' '.join(where.split())}: {' '.join(problem.split())}"
        raise self.error(f"{self.file}: {line}")

    def has(self, key: str) -> bool:
        return key in self.data

    def take(self, key: str, expected: str = "a value") -> object:
        if key not in self.data:
            self.fail(key, f"expected {expected}, found nothing")
        return self.data.pop(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._or_default(key, default, "a string")
        if not isinstance(value, str):
            self.fail(key, f"expected a string, found {value!r}")
        return value

    def integer(self, key: str, default: int | None = None, minimum: int = 0) -> int:
        expected = f"an integer of at least {minimum}"
        value = self._or_default(key, default, expected)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.fail(key, f"expected {expected}, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._or_default(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"expected a number, found {value!r}")
        try:
            number = float(value)
        except OverflowError:
            self.fail(key, "expected a finite number, found an integer beyond float64")
        if not math.isfinite(number):
            self.fail(key, f"expected a finite number, found {value!r}")
        return number

    def table(self, key: str) -> "Fields":
        return self.nested(key, self.take(key, "a table"))

    def items(self, key: str) -> list[object]:
        value = self.take(key, "a list")
        if not isinstance(value, list):
            self.fail(key, f"expected a list, found {value!r}")
        return value

    def truth(self, key: str) -> bool:
        value = self.take(key, "true or false")
        if not isinstance(value, bool):
            self.fail(key, f"expected true or false, found {value!r}")
        return value

    def texts(self, key: str) -> list[str]:
        items = self.items(key)
        for item in items:
            if not isinstance(item, str):
                self.fail(key, f"expected strings, found {item!r}")
        return [str(item) for item in items]

    def numbers(self, key: str) -> list[float]:
        return [item.number(where) for where, item in self._each(key)]

    def integers(self, key: str) -> list[int]:
        return [item.integer(where) for where, item in self._each(key)]

    def tables(self, key: str) -> list["Fields"]:
        items = self.items(key)
        return [self.nested(f"{key}[{i}]", item) for i, item in enumerate(items)]

    def nested(self, key: str, value: object) -> "Fields":
        """*value*, found at *key*, as a table of its own."""
        if not isinstance(value, dict):
            self.fail(key, f"expected a table, found {value!r}")
        path = ".".join(part for part in (self.path, key) if part)
        return Fields(self.file, path, dict(value), self.error)

    def close(self) -> None:
        """Raise if a key was not taken: nothing is ignored."""
        for key in sorted(self.data):
            self.fail(key, "unknown key")

    def _each(self, key: str) -> list[tuple[str, "Fields"]]:
        """Each item of the list at *key*, as the only one of a table."""
        return [
            (where, Fields(self.file, self.path, {where: item}, self.error))
            for where, item in (
                (f"{key}[{i}]", item) for i, item in enumerate(self.items(key))
            )
        ]

    def _or_default(self, key: str, default: object, expected: str) -> object:
        if default is not None and key not in self.data:
            return default
        return self.take(key, expected)


def json_fields(file: str, text: bytes) -> Fields:
    """
    The JSON object *text* that was read from *file*.

    Raises:
        ArtifactError: Not a JSON object, a key is there twice, or NaN is in it.
    """
    try:
        data = json.loads(
            text, object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: expected JSON, found {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{file}: expected an object, found {type(data).__name__}")
    return Fields(file, "", data)


def dump_json(data: Mapping[str, object]) -> bytes:
    """*data* as JSON, the same bytes for the same data."""
    text = json.dumps(data, sort_keys=True, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def _refuse_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a key that is there twice")
    return data


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)
