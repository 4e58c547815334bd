"""What no sender can have seen is refused before anything changes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from monitor.core import BatchError
from monitor.records import Gap, LossReason, LostRange, StepBatch
from tests.monitor.builders import EARLY, ENGINE, LATE, Rows, batch, monitor, quiet

Change = Callable[[StepBatch], dict[str, Any]]

CHANGES: dict[str, Change] = {
    "offsets fall": lambda b: {"row_offsets": np.array([0, 3, 2])},
    "offsets begin late": lambda b: {"row_offsets": np.array([1, 2, 3])},
    "offsets are too few": lambda b: {"row_offsets": np.array([0, 3])},
    "offsets are none": lambda b: {"row_offsets": np.array([], dtype=np.int64)},
    "offsets are floats": lambda b: {"row_offsets": np.array([0.0, 2.0, 3.0])},
    "a request twice": lambda b: {"request_ids": ("a", "a")},
    "an end twice": lambda b: {"finished": ("a", "a")},
    "position below 0": lambda b: {"first_positions": np.array([-1, 0])},
    "position beyond belief": lambda b: {"first_positions": np.array([1 << 16, 0])},
    "cached below 0": lambda b: {"n_cached": np.array([0, -1])},
    "too few tokens": lambda b: {"token_ids": b.token_ids[:2]},
    "both kinds": lambda b: {"activations": b.columns},
    "norms elsewhere": lambda b: {"squared_norms": {EARLY: b.squared_norms[EARLY]}},
    "unknown hook point": lambda b: {
        "columns": {**b.columns, "blocks.9.hook_resid_post": b.columns[EARLY]},
        "squared_norms": {
            **b.squared_norms,
            "blocks.9.hook_resid_post": b.squared_norms[EARLY],
        },
    },
    "missing hook point": lambda b: {
        "columns": {EARLY: b.columns[EARLY]},
        "squared_norms": {EARLY: b.squared_norms[EARLY]},
    },
    "no hook point": lambda b: {"columns": {}, "squared_norms": {}},
    "too narrow": lambda b: {"columns": {**b.columns, LATE: b.columns[LATE][:, :0]}},
    "too few rows": lambda b: {"columns": {**b.columns, LATE: b.columns[LATE][:2]}},
    "flat": lambda b: {"columns": {**b.columns, LATE: b.columns[LATE][:, 0]}},
    "float64": lambda b: {
        "columns": {**b.columns, LATE: b.columns[LATE].astype(np.float64)}
    },
    "too few norms": lambda b: {
        "squared_norms": {**b.squared_norms, LATE: b.squared_norms[LATE][:1]}
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_malformed_batch_changes_nothing(name: str) -> None:
    """
    The batch is refused, no counter moves, and the right batch still fits.
    """
    watch = monitor()
    good = batch(Rows("a", 0, quiet(2)), Rows("b", 4, quiet(1)))
    bad = replace(good, **CHANGES[name](good))

    with pytest.raises(BatchError):
        watch.observe(bad)

    assert (0, 0) == (watch.n_live_requests, watch.totals.tokens.n_expected)
    watch.observe(good)
    assert 3 == watch.totals.tokens.n_scored


@pytest.mark.parametrize(
    ("first_position", "n_tokens", "n_total"),
    [(0, 5, 4), (-1, 1, 1), (0, -1, 1), (1 << 16, 1, 1)],
)
def test_a_malformed_gap_changes_nothing(
    first_position: int, n_tokens: int, n_total: int
) -> None:
    """
    A gap that lists more than it counts, or what cannot be, is refused.
    """
    watch = monitor()
    lost = LostRange(request_id="a", first_position=first_position, n_tokens=n_tokens)

    with pytest.raises(BatchError):
        watch.record_gap(
            Gap(
                engine=ENGINE,
                rank=0,
                reason=LossReason.BUFFER_FULL,
                first_step=1,
                last_step=1,
                n_tokens=n_total,
                lost=(lost,),
            )
        )

    assert (0, 0) == (watch.n_live_requests, watch.totals.tokens.n_expected)


def test_a_batch_without_rows_fits() -> None:
    """
    A step that only tells of ends needs no hook points.
    """
    empty = replace(batch(finished=("a",)), columns={}, squared_norms={})

    assert [] == monitor().observe(empty)
