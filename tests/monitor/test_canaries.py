"""A canary passes as it came out before, and fails by a name for what is wrong."""

from dataclasses import replace

import numpy as np
import pytest

from monitor.canaries import CanaryLook, CanaryVerdict
from monitor.records import NOT_WRITTEN, StepBatch
from probes.canaries import Canary
from tests.monitor.builders import (
    D_MODEL,
    EARLY,
    LATE,
    Rows,
    bank,
    batch,
    quiet,
    with_norms,
)

NAME = "canary-1"
TOKENS = (7, 8, 9, 10)
_VALUES = np.random.default_rng(0).standard_normal((4, D_MODEL)).tolist()


def canary() -> Canary:
    """What `bank` makes of four tokens."""
    values = np.array(_VALUES, dtype=np.float32)
    columns, norms = bank().project({EARLY: values, LATE: values})
    return Canary(token_ids=TOKENS, columns=columns, squared_norms=norms)


def rows(*, first: int = 0, end: int = 4, is_whole: bool = False) -> StepBatch:
    """A step with another request, and some of the canary's tokens."""
    made = batch(
        Rows("other", 0, quiet(2)),
        Rows(f"cmpl-{NAME}-0000-0-abcdef01", first, _VALUES[first:end]),
        holds_activations=is_whole,
    )
    token_ids = np.array([1, 2, *TOKENS[first:end]], dtype=np.int32)
    return replace(made, token_ids=token_ids)


def look() -> CanaryLook:
    return CanaryLook([canary()], NAME, bank())


@pytest.mark.parametrize("is_whole", [False, True], ids=["columns", "activations"])
def test_it_passes_in_pieces(is_whole: bool) -> None:
    """The same numbers, in whatever steps they come, are a pass."""
    looking = look()
    looking.observe(rows(end=1, is_whole=is_whole))
    assert not looking.is_complete
    looking.observe(rows(first=1, is_whole=is_whole))
    assert looking.is_complete
    found = looking.result(1e-4)
    assert CanaryVerdict.PASSED is found.verdict
    assert found.difference < 1e-6


def test_its_answer_is_not_looked_at() -> None:
    """Rows beyond the prompt are what the model said, and no canary's."""
    looking = look()
    looking.observe(rows())
    more = batch(Rows(f"cmpl-{NAME}-0000-0-abcdef01", 4, quiet(1)))
    looking.observe(more)
    assert CanaryVerdict.PASSED is looking.result(1e-4).verdict


def other_columns(made: StepBatch) -> StepBatch:
    return replace(made, columns={h: v * 1.01 for h, v in made.columns.items()})


def not_finite(made: StepBatch) -> StepBatch:
    return replace(made, columns={h: v * np.nan for h, v in made.columns.items()})


def other_tokens(made: StepBatch) -> StepBatch:
    return replace(made, token_ids=made.token_ids + 1)


def not_written(made: StepBatch) -> StepBatch:
    return with_norms(made, [3], float(NOT_WRITTEN))


def other_bank(made: StepBatch) -> StepBatch:
    return replace(made, bank_digest="f" * 64)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (other_columns, CanaryVerdict.COLUMNS_DIFFER),
        (not_finite, CanaryVerdict.COLUMNS_DIFFER),
        (other_tokens, CanaryVerdict.TOKENS_DIFFER),
        (not_written, CanaryVerdict.INCOMPLETE),
        (other_bank, CanaryVerdict.NOT_SEEN),
        (lambda made: rows(end=3), CanaryVerdict.INCOMPLETE),
    ],
)
def test_what_is_wrong_has_a_name(change: object, verdict: CanaryVerdict) -> None:
    """Other numbers, other tokens, rows that lack or that nothing wrote."""
    looking = look()
    looking.observe(change(rows()))  # type: ignore[operator]
    found = looking.result(1e-4)
    assert verdict is found.verdict
    assert found.is_blind
