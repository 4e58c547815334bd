# A canary is the start of a prompt. Run through the model again, it has to give the
# columns that it gave when the detectors were fitted: if it does not, then another
# model, another hook point or another arithmetic is being read.
#
#     {"canaries": [
#       {"token_ids": [1, 2, ...],
#        "hook_points": {
#          "blocks.15.hook_resid_post": {
#            "columns": [[...], [...], ...],
#            "squared_norms": [...]}}}, ...]}
#
# Numbers are written as float64 writes them, so that each float32 comes back exactly.
"""Canaries: prompts, and the columns that a detector set's bank makes of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.arrays import Float32, Float64, check_array
from probes.errors import ArtifactError
from probes.fields import Fields, json_fields

MAX_NUMBERS = 1 << 18
"""In one file, about: 5 MiB as JSON."""

TOLERANCES: Mapping[str, float] = {
    "float32": 1e-4,
    "float16": 2.0**-6,
    "bfloat16": 2.0**-3,
}
"""
By dtype, how far `compare` may find what a model gives from what it gave.

Two attention kernels on 80 benign prompts of the organism: 7e-7, 0.004 and 0.04;
another layer of it: 1.0 (2026-11-23, `tests/bench/canaries.py --n 80`). Each operation
rounds by up to 2^-9 in bfloat16, which adds up from layer to layer.
"""

_MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canary:
    """
    The start of a prompt, and what the bank makes of it.

    Attributes:
        token_ids: From position 0 on.

        columns: By hook point, of shape (n_tokens, K_h), float32.

        squared_norms: By hook point, of shape (n_tokens,), float32.
    """

    token_ids: tuple[int, ...]
    columns: Mapping[str, Float32]
    squared_norms: Mapping[str, Float32]

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if not n or min(self.token_ids) < 0 or max(self.token_ids) > _MAX_TOKEN_ID:
            raise ValueError(
                f"token_ids: expected some of 0 to {_MAX_TOKEN_ID}, "
                f"got {list(self.token_ids[:8])}"
            )
        if set(self.columns) != set(self.squared_norms):
            raise ValueError(
                f"hook_points: expected squared norms of {sorted(self.columns)}, "
                f"got those of {sorted(self.squared_norms)}"
            )
        for hook_point, columns in self.columns.items():
            check_array(f"{hook_point}: columns", columns, (n, "K"))
            norms = self.squared_norms[hook_point]
            check_array(f"{hook_point}: squared_norms", norms, (n,))
            if (norms < 0).any():
                raise ValueError(
                    f"{hook_point}: squared_norms: expected none below 0, "
                    f"got {norms.min()}"
                )


def check_canaries(
    where: str, canaries: Sequence[Canary], widths: Mapping[str, int]
) -> None:
    """
    Raise `ArtifactError` unless *canaries* are of a bank with columns *widths*.

    Args:
        where: Named in the message.

        canaries: Of a bundle.

        widths: By hook point, K_h.
    """
    for i, canary in enumerate(canaries):
        at = f"{where}: canaries[{i}]"
        if set(canary.columns) != set(widths):
            raise ArtifactError(
                f"{at}.hook_points: expected {sorted(widths)}, "
                f"found {sorted(canary.columns)}"
            )
        for hook_point, columns in sorted(canary.columns.items()):
            if columns.shape[1] != widths[hook_point]:
                raise ArtifactError(
                    f"{at}.hook_points.{hook_point}: columns: expected "
                    f"{widths[hook_point]} a token, found {columns.shape[1]}"
                )


def compare(expected: Sequence[Canary], found: Sequence[Canary]) -> float:
    """
    The worst relative difference between what canaries gave and give.

    Of a column or of the squared norms, over the tokens of one canary: the root of
    the mean square. A few tokens are always rounded to where others go on from.

    A squared norm is held against itself. A column c is held against itself, or
    against what is usual of it for an activation x of that length where that is
    more: |x| times the median of |c| / |x| over the tokens of *expected*. Rounding
    moves a column by a share of |x|, and a column may be near 0 by chance.

    Args:
        expected: Those of a bundle, or some of them.

        found: The same prompts again, in the same order.

    Returns:
        To be held against `TOLERANCES`; infinity where a number is not finite.

    Raises:
        ValueError: Not the same tokens, hook points and widths.
    """
    _check_comparable(expected, found)
    worst = 0.0
    for hook_point in expected[0].columns if expected else ():
        usual = _usual_shares(expected, hook_point)
        for ours, theirs in zip(expected, found, strict=True):
            differences = _differences(ours, theirs, hook_point, usual)
            with np.errstate(over="ignore"):
                means = np.sqrt((differences**2).mean(axis=0))
            worst = max(worst, float(np.where(np.isnan(means), np.inf, means).max()))
    return worst


def _usual_shares(canaries: Sequence[Canary], hook_point: str) -> Float64:
    """Medians of |c| / |x|, (K_h,)."""
    shares = []
    for canary in canaries:
        lengths = _lengths(canary, hook_point)
        columns = np.abs(canary.columns[hook_point].astype(np.float64))
        shares.append(columns / np.where(lengths > 0, lengths, 1.0))
    medians: Float64 = np.median(np.concatenate(shares), axis=0)
    return medians


def _differences(
    expected: Canary, found: Canary, hook_point: str, usual: Float64
) -> Float64:
    """Of each column and of the squared norm, relative, (n_tokens, K_h + 1)."""
    columns, columns_found = (
        np.column_stack([c.columns[hook_point], c.squared_norms[hook_point]]).astype(
            np.float64
        )
        for c in (expected, found)
    )
    scale = np.abs(columns)
    scale[:, :-1] = np.maximum(scale[:, :-1], _lengths(expected, hook_point) * usual)
    moved = np.abs(columns_found - columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative: Float64 = np.where(moved == 0, 0.0, moved / scale)
    return relative


def _lengths(canary: Canary, hook_point: str) -> Float64:
    """|x| of each token, (n_tokens, 1)."""
    return np.sqrt(canary.squared_norms[hook_point].astype(np.float64))[:, None]


def tolerance_of(dtype: str) -> float:
    """
    What `compare` may find where a model is served as *dtype*.

    Raises:
        ArtifactError: *dtype* is none that is known.
    """
    if dtype not in TOLERANCES:
        raise ArtifactError(
            f"identity.dtype: expected one of {list(TOLERANCES)}, found {dtype!r}"
        )
    return TOLERANCES[dtype]


def dump_canaries(canaries: Sequence[Canary]) -> bytes:
    """*canaries* as JSON, a token a line; the same bytes for the same canaries."""
    items: list[object] = [
        {
            "token_ids": list(canary.token_ids),
            "hook_points": {
                hook_point: {
                    "columns": columns.tolist(),
                    "squared_norms": canary.squared_norms[hook_point].tolist(),
                }
                for hook_point, columns in sorted(canary.columns.items())
            },
        }
        for canary in canaries
    ]
    return _text({"canaries": items}, "").encode() + b"\n"


def read_canaries(path: Path, text: bytes) -> tuple[Canary, ...]:
    """
    The canaries that `dump_canaries` made *text* from, which was read from *path*.

    Raises:
        ArtifactError: A key is missing, unknown or not what it must be.
    """
    table = json_fields(str(path), text)
    canaries = tuple(_read_canary(item) for item in table.tables("canaries"))
    table.close()
    return canaries


def _read_canary(table: Fields) -> Canary:
    items = table.items("token_ids")
    token_ids = tuple(item for item in items if type(item) is int)
    if len(token_ids) < len(items):
        table.fail("token_ids", "expected integers only")
    places = table.table("hook_points")
    columns, squared_norms = {}, {}
    for hook_point in sorted(places.data):
        place = places.table(hook_point)
        columns[hook_point] = _read_array(place, "columns", is_matrix=True)
        squared_norms[hook_point] = _read_array(place, "squared_norms", is_matrix=False)
        place.close()
    table.close()
    try:
        return Canary(token_ids=token_ids, columns=columns, squared_norms=squared_norms)
    except ValueError as error:
        raise ArtifactError(f"{table.file}: {table.path}: {error}") from error


def _read_array(table: Fields, key: str, *, is_matrix: bool) -> Float32:
    items = table.items(key)
    rows = items if is_matrix else [items]
    for row in rows:
        # Exactly these types: NumPy would read a string as a number, and a truth value.
        if not isinstance(row, list):
            table.fail(key, f"expected lists of numbers, found a {type(row).__name__}")
        others = {type(x).__name__ for x in row if type(x) not in (int, float)}
        if others:
            table.fail(key, f"expected numbers, found a {min(others)}")
    try:
        # A number too large for float32 becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            return np.array(items, dtype=np.float64).astype(np.float32)
    except (ValueError, OverflowError):
        table.fail(key, "expected rows of one length, of finite numbers")


def _check_comparable(expected: Sequence[Canary], found: Sequence[Canary]) -> None:
    def widths(canary: Canary) -> dict[str, int]:
        return {h: columns.shape[1] for h, columns in canary.columns.items()}

    if len(expected) != len(found):
        raise ValueError(
            f"canaries: expected {len(expected)} of them, got {len(found)}"
        )
    for i, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        is_same = ours.token_ids == theirs.token_ids
        if not is_same or not widths(ours) == widths(theirs) == widths(expected[0]):
            raise ValueError(
                f"canaries[{i}]: expected the same tokens, hook points and widths"
            )


def _text(value: object, indent: str) -> str:
    """*value* as JSON, with a list of numbers on one line."""
    deeper = f"{indent}  "
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {_text(v, deeper)}" for k, v in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], list | dict):
        items = [_text(item, deeper) for item in value]
    else:
        return json.dumps(value, allow_nan=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    inner = f",\n{deeper}".join(items)
    return f"{opening}\n{deeper}{inner}\n{indent}{closing}"
