"""What recipes of labelled probes share."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from probes.errors import RecipeError
from probes.fields import Fields
from probes.fit.select import TOKENS, Selector
from probes.hooks import check_hook_point

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPlan:
    """
    A detector to be fitted on requests of two kinds.

    Attributes:
        positive: Requests that show the behaviour.

        negative: Requests that do not; all others where it is None.
    """

    positive: Selector
    negative: Selector | None


def recipe_fields(path: Path) -> Fields:
    """
    The table in the TOML file at *path*.

    Raises:
        RecipeError: It cannot be read, or is not TOML.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path.name}: expected TOML, found {error}") from error
    return Fields(path.name, "", data, RecipeError)


def read_selector(table: Fields, key: str) -> Selector:
    """The requests that *key* selects by a label."""
    nested = table.table(key)
    label, equals = nested.text("label"), nested.take("equals")
    if not isinstance(equals, str | bool | int | float):
        nested.fail("equals", f"expected a string, truth value or number: {equals!r}")
    nested.close()
    return Selector(label=label, equals=equals)


def read_kinds(table: Fields) -> tuple[Selector, Selector | None]:
    """The positive requests, and the negative ones where they are named."""
    positive = read_selector(table, "positive")
    return positive, read_selector(table, "negative") if table.has("negative") else None


def read_tokens(table: Fields, default: str) -> str:
    """Which tokens of a positive request show the behaviour."""
    tokens = table.text("tokens", default)
    if tokens not in TOKENS:
        table.fail("tokens", f"expected one of {list(TOKENS)}, found {tokens!r}")
    return tokens


def read_hook_points(table: Fields, key: str) -> tuple[str, ...]:
    """Two hook points or more, all different; none where *key* is not there."""
    if not table.has(key):
        return ()
    hook_points = table.texts(key)
    for hook_point in hook_points:
        named(table, key, check_hook_point, hook_point)
    if len(set(hook_points)) < len(hook_points) or len(hook_points) < 2:
        table.fail(key, f"expected different ones, found {hook_points}")
    return tuple(hook_points)


def made(table: Fields, make: Callable[[], _T]) -> _T:
    """What *make* gives; its error names the key, as ``key: problem``."""
    try:
        return make()
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        table.fail(key, problem)


def named(table: Fields, key: str, check: Callable[[str], None], value: str) -> None:
    """Fail under *key* where *check* does not take *value*."""
    try:
        check(value)
    except ValueError as error:
        table.fail(key, str(error).partition(": ")[2])
