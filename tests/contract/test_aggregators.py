"""What every aggregator must do. A new one is one line in `AGGREGATORS`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import ActivationShapeError
from probes.aggregate import (
    CUSUM,
    Aggregator,
    AttentionMean,
    EMAMax,
    Last,
    Max,
    Mean,
    MultiMax,
    RollingAttentionMax,
    RollingMeanMax,
    SlidingMeanMax,
    SoftmaxMean,
    TopKMean,
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
    CUSUM(),
    CUSUM(drift=0.3),
    SlidingMeanMax(),
    SlidingMeanMax(window=1),
    RollingMeanMax(),
    RollingMeanMax(window=3),
    SoftmaxMean(),
    SoftmaxMean(temperature=0.1),
    TopKMean(),
    TopKMean(k=1),
    AttentionMean(n_heads=3),
    RollingAttentionMax(),
    RollingAttentionMax(n_heads=3, window=4),
    MultiMax(n_heads=3),
]
each = pytest.mark.parametrize("aggregator", AGGREGATORS, ids=repr)


def evidence_of(aggregator: Aggregator, n_tokens: int, seed: int = 0) -> Float32:
    """Return normal evidence of as many columns as *aggregator* takes."""
    return floats(n_tokens, aggregator.n_columns, seed=seed)


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
    requests = [
        evidence_of(aggregator, n, seed=seed % 1000 + i) for i, n in enumerate(lengths)
    ]

    statistic = run(aggregator, requests, n_batches, seed)

    expected = [aggregator.aggregate(rows) for rows in requests]
    np.testing.assert_allclose(expected, statistic, rtol=1e-6, atol=1e-6)


@each
def test_a_thousand_cuttings_give_the_plain_statistic(aggregator: Aggregator) -> None:
    """
    One request, cut in a thousand ways into 9 batches, has one statistic within 1e-6.
    """
    rows = evidence_of(aggregator, 300)

    statistics = run(aggregator, [rows] * 1000, 9, seed=1)

    expected = aggregator.aggregate(rows)
    np.testing.assert_allclose(statistics, expected, rtol=1e-6, atol=1e-6)


@each
def test_long_request_gives_the_plain_statistic(aggregator: Aggregator) -> None:
    """
    Nothing is lost over ten thousand tokens in one segment.
    """
    rows = evidence_of(aggregator, 10_000)

    statistic = run(aggregator, [rows], 1, seed=0)

    np.testing.assert_allclose([aggregator.aggregate(rows)], statistic, rtol=1e-6)


@each
def test_no_rows_leave_the_state(aggregator: Aggregator) -> None:
    """
    A segment without rows changes neither state nor statistic.
    """
    offsets = np.array([0, 3, 5], dtype=np.int64)
    state, before = aggregator.update(
        aggregator.start(2), evidence_of(aggregator, 5), offsets
    )

    nothing = evidence_of(aggregator, 0)
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

    _, statistic = aggregator.update(
        aggregator.start(2), evidence_of(aggregator, 2), offsets
    )

    assert -np.inf == statistic[0]
    assert np.isfinite(statistic[1])
    assert -np.inf == aggregator.aggregate(evidence_of(aggregator, 0))


@each
def test_update_is_pure(aggregator: Aggregator) -> None:
    """
    The old state is as it was, and updating it again gives the same.
    """
    offsets = np.array([0, 4], dtype=np.int64)
    start = aggregator.start(1)
    copy = start.copy()

    first_state, first = aggregator.update(start, evidence_of(aggregator, 4), offsets)
    first_state[:] = 0
    _, second = aggregator.update(start, evidence_of(aggregator, 4), offsets)

    np.testing.assert_array_equal(copy, start)
    np.testing.assert_array_equal(first, second)


@each
def test_monotone_means_never_falling(aggregator: Aggregator) -> None:
    """
    A monotone statistic never falls from token to token, as flagging online needs.
    """
    state, before = aggregator.start(1), np.array([-np.inf])
    falls = False
    for row in evidence_of(aggregator, 50):
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
    evidence = evidence_of(aggregator, 2)
    evidence[1, -1] = bad

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
        aggregator.update(aggregator.start(2), evidence_of(aggregator, 2), offsets)


@each
def test_several_columns_are_refused(aggregator: Aggregator) -> None:
    """
    Evidence of another number of columns is refused rather than averaged somehow.
    """
    n_columns = aggregator.n_columns
    with pytest.raises(ActivationShapeError, match=rf"\(n_tokens, {n_columns}\)"):
        aggregator.update(
            aggregator.start(1), floats(2, n_columns + 1), np.array([0, 2])
        )


@each
def test_a_huge_request_leaves_the_others_alone(aggregator: Aggregator) -> None:
    """
    Evidence near float32's limits in one request does not move another's statistic.
    """
    huge = np.full_like(evidence_of(aggregator, 7), np.finfo(np.float32).max)
    quiet = evidence_of(aggregator, 7, seed=1)

    alone = run(aggregator, [quiet], 3, seed=0)
    beside = run(aggregator, [huge, quiet, -huge], 3, seed=0)

    assert np.isfinite(beside).all()
    np.testing.assert_allclose(alone, beside[1:2], rtol=1e-12)


@each
def test_token_scores_are_one_number_a_token(aggregator: Aggregator) -> None:
    """
    Each token has one finite number to show, however loud its evidence.
    """
    evidence = evidence_of(aggregator, 4)
    evidence[1] = np.finfo(np.float32).max

    scores = aggregator.token_scores(evidence)

    assert (4,) == scores.shape
    assert np.float32 == scores.dtype
    assert np.isfinite(scores).all()
    assert 1 == scores.argmax()


@each
def test_json_round_trip(aggregator: Aggregator) -> None:
    """
    An aggregator read from its JSON is the same aggregator.
    """
    assert aggregator == aggregator_from_json(aggregator.to_json())
