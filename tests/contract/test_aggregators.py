"""What every aggregator must do. A new one is one line in `AGGREGATORS`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import (
    ActivationShapeError,
    Aggregator,
    EMAMax,
    Last,
    Max,
    Mean,
    aggregator_from_json,
)
from probes.arrays import Float32, Float64, Int64
from tests.probes.builders import floats

AGGREGATORS: list[Aggregator] = [
    Max(),
    Mean(),
    Last(),
    EMAMax(),
    EMAMax(alpha=0.05),
    EMAMax(alpha=1.0),
    Max(tokens="answer"),
    EMAMax(alpha=0.25, tokens="answer"),
]
each = pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)


def run(
    aggregator: Aggregator, requests: list[Float32], n_batches: int, seed: int
) -> Float64:
    """The statistics after cutting every request at random into *n_batches*."""
    rng = np.random.default_rng(seed)
    cuts = [
        np.sort(rng.integers(0, len(rows) + 1, size=n_batches - 1)) for rows in requests
    ]
    pieces = [np.split(rows, cut) for rows, cut in zip(requests, cuts, strict=True)]
    state = aggregator.start(len(requests))
    statistic = np.full(len(requests), -np.inf)
    for batch in zip(*pieces, strict=True):
        offsets = np.cumsum([0, *map(len, batch)], dtype=np.int64)
        state, statistic = aggregator.update(state, np.concatenate(batch), offsets)
    return statistic


@each
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=6),
    n_batches=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_cut_gives_the_plain_statistic(
    aggregator: Aggregator, lengths: list[int], n_batches: int, seed: int
) -> None:
    """
    However requests are cut into batches, each ends with its plain statistic.
    """
    requests = [floats(n, 1, seed=seed % 1000 + i) for i, n in enumerate(lengths)]

    statistic = run(aggregator, requests, n_batches, seed)

    expected = [aggregator.aggregate(rows) for rows in requests]
    np.testing.assert_allclose(expected, statistic, rtol=1e-6, atol=1e-6)


@each
def test_long_request_gives_the_plain_statistic(aggregator: Aggregator) -> None:
    """
    Nothing is lost over ten thousand tokens in one segment.
    """
    rows = floats(10_000, 1)

    statistic = run(aggregator, [rows], 1, seed=0)

    np.testing.assert_allclose([aggregator.aggregate(rows)], statistic, rtol=1e-6)


@each
def test_no_rows_leave_the_state(aggregator: Aggregator) -> None:
    """
    A segment without rows changes neither state nor statistic.
    """
    offsets = np.array([0, 3, 5], dtype=np.int64)
    state, before = aggregator.update(aggregator.start(2), floats(5, 1), offsets)

    nothing = np.empty((0, 1), dtype=np.float32)
    after_state, after = aggregator.update(state, nothing, np.zeros(3, dtype=np.int64))

    np.testing.assert_array_equal(state, after_state)
    np.testing.assert_array_equal(before, after)


@each
def test_before_any_token_the_statistic_is_minus_infinity(
    aggregator: Aggregator,
) -> None:
    """
    A request without any token yet can be above no threshold.
    """
    offsets = np.array([0, 0, 2], dtype=np.int64)

    _, statistic = aggregator.update(aggregator.start(2), floats(2, 1), offsets)

    assert -np.inf == statistic[0]
    assert np.isfinite(statistic[1])
    assert -np.inf == aggregator.aggregate(np.empty((0, 1), dtype=np.float32))


@each
def test_update_is_pure(aggregator: Aggregator) -> None:
    """
    The old state is as it was, and updating it again gives the same.
    """
    offsets = np.array([0, 4], dtype=np.int64)
    start = aggregator.start(1)
    copy = start.copy()

    first_state, first = aggregator.update(start, floats(4, 1), offsets)
    first_state[:] = 0
    _, second = aggregator.update(start, floats(4, 1), offsets)

    np.testing.assert_array_equal(copy, start)
    np.testing.assert_array_equal(first, second)


@each
def test_monotone_means_never_falling(aggregator: Aggregator) -> None:
    """
    A monotone statistic never falls from token to token, as flagging online needs.
    """
    state, before = aggregator.start(1), np.array([-np.inf])
    falls = False
    for row in floats(50, 1):
        state, after = aggregator.update(state, row[None], np.array([0, 1]))
        falls |= bool(after[0] < before[0])
        before = after

    assert aggregator.is_monotone is not falls


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_evidence_is_refused(aggregator: Aggregator, bad: float) -> None:
    """
    Evidence that is not finite is refused: NaN would pass as clean.
    """
    evidence = np.array([[0.0], [bad]], dtype=np.float32)

    with pytest.raises(ActivationShapeError, match="finite"):
        aggregator.update(aggregator.start(1), evidence, np.array([0, 2]))


@each
@pytest.mark.parametrize(
    "row_offsets", [[0, 2], [0, 1, 3], [1, 1, 2], [0, 3, 2], [0, 1, 1, 2], []]
)
def test_offsets_that_do_not_fit_are_refused(
    aggregator: Aggregator, row_offsets: list[int]
) -> None:
    """
    Every row belongs to exactly one request, or the update is refused.
    """
    offsets: Int64 = np.array(row_offsets, dtype=np.int64)

    with pytest.raises(ActivationShapeError, match="row offsets"):
        aggregator.update(aggregator.start(2), floats(2, 1), offsets)


@each
def test_several_columns_are_refused(aggregator: Aggregator) -> None:
    """
    Evidence of more than one column is refused rather than averaged somehow.
    """
    with pytest.raises(ActivationShapeError, match=r"\(n_tokens, 1\)"):
        aggregator.update(aggregator.start(1), floats(2, 2), np.array([0, 2]))


@each
def test_json_round_trip(aggregator: Aggregator) -> None:
    """
    An aggregator read from its JSON is the same aggregator.
    """
    assert aggregator == aggregator_from_json(aggregator.to_json())
