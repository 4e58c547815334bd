# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Probes trained by gradient descent on labels of requests."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probes import (
    AttentionMean,
    Dataset,
    DatasetWriter,
    Detector,
    Max,
    Mean,
    MultiMax,
    RollingAttentionMax,
    load_dataset,
)
from probes.aggregate import Aggregator, Last, SlidingMeanMax, SoftmaxMean
from probes.arrays import Float32
from tests.probes.builders import D_MODEL, HOOK_POINT, floats, identity, require_sklearn

require_sklearn()
torch = pytest.importorskip("torch")

from probes.fit.bags import Bags, Scaler
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.logistic import LogisticOptions, fit_logistic
from probes.fit.nonlinear import (
    NonlinearOptions,
    Task,
    fit_attention,
    fit_mlp,
    fit_multi_max,
    fit_swim,
)
from probes.fit.training import TrainingOptions, statistic, swim_loss

TRAINING = TrainingOptions(steps=150, batch_size=16, learning_rate=1e-2)
OPTIONS = NonlinearOptions(width=16, n_hidden=1, training=TRAINING)

FITS: dict[str, Callable[[Task], Detector]] = {
    "mlp": lambda task: fit_mlp(task, Mean(), OPTIONS),
    "mlp-max": lambda task: fit_mlp(task, Max(), OPTIONS),
    "attention": lambda task: fit_attention(task, AttentionMean(n_heads=2), OPTIONS),
    "rolling": lambda task: fit_attention(
        task, RollingAttentionMax(n_heads=2, window=4), OPTIONS
    ),
    "multi-max": lambda task: fit_multi_max(task, MultiMax(n_heads=2), OPTIONS),
    "multi-max-hard": lambda task: fit_multi_max(
        task,
        MultiMax(n_heads=2),
        NonlinearOptions(
            width=16,
            is_hard=True,
            training=TrainingOptions(steps=400, batch_size=16, learning_rate=1e-2),
        ),
    ),
}


def write(path: Path, seed: int, n_requests: int = 160) -> Dataset:
    """
    Requests in whose last five tokens two coordinates are +-3.

    The concept is that their signs agree (XOR), which no direction tells.
    """
    rng = np.random.default_rng(seed)
    with DatasetWriter(path, identity(), [HOOK_POINT], D_MODEL) as writer:
        for index in range(n_requests):
            n_tokens = int(rng.integers(6, 14))
            rows = rng.normal(size=(n_tokens, D_MODEL)).astype(np.float32)
            signs = rng.choice([-3, 3], size=2)
            rows[-5:, :2] += signs
            writer.append(
                f"{seed}-{index}",
                {HOOK_POINT: rows * 5 + 20},
                rng.integers(0, 1 << 20, n_tokens),
                np.arange(n_tokens),
                n_prompt_tokens=2,
                labels={"agree": bool(signs[0] == signs[1])},
            )
    return load_dataset(path)


@pytest.fixture(scope="module")
def train_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("train") / "data", seed=1)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("test") / "data", seed=2)


def split(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Indices of the requests that show the concept, and of the others."""
    agree = [bool(request.labels["agree"]) for request in dataset.requests]
    return [i for i, a in enumerate(agree) if a], [
        i for i, a in enumerate(agree) if not a
    ]


def task(dataset: Dataset) -> Task:
    positive, negative = split(dataset)
    return Task(
        dataset=dataset,
        name="xor",
        hook_point=HOOK_POINT,
        positive=positive,
        negative=negative,
    )


def separation(dataset: Dataset, detector: Detector) -> float:
    positive, negative = split(dataset)
    statistics = request_statistics(dataset, detector)
    return auroc(statistics[positive], statistics[negative])


@pytest.mark.parametrize("family", FITS)
def test_xor_is_learnt(train_set: Dataset, test_set: Dataset, family: str) -> None:
    """
    A concept that no direction tells is separated on new requests.
    """
    probe = FITS[family](task(train_set))

    assert separation(test_set, probe) >= 0.97


def test_xor_is_beyond_a_linear_probe(train_set: Dataset, test_set: Dataset) -> None:
    """
    The planted concept is one that a linear probe cannot learn.
    """
    positive, negative = split(train_set)
    probe = fit_logistic(
        train_set,
        name="linear",
        hook_point=HOOK_POINT,
        positive=positive,
        negative=negative,
        aggregator=Mean(),
        options=LogisticOptions(rounds=1),
    )

    assert separation(test_set, probe) <= 0.7


@pytest.mark.parametrize("family", ["mlp", "rolling"])
def test_same_inputs_same_bytes(train_set: Dataset, family: str) -> None:
    """
    Training twice gives the same weights, to the last bit.
    """
    first, second = (FITS[family](task(train_set)) for _ in range(2))

    for one, other in zip(first.projections, second.projections, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
    columns = floats(5, 16)
    np.testing.assert_array_equal(first.head(columns), second.head(columns))


@pytest.mark.parametrize(
    "aggregator",
    [
        Mean(),
        Max(),
        Last(),
        SoftmaxMean(temperature=0.5),
        AttentionMean(n_heads=3),
        RollingAttentionMax(n_heads=3, window=4),
        MultiMax(n_heads=3),
    ],
    ids=lambda aggregator: aggregator.name,
)
@pytest.mark.parametrize("n_tokens", [1, 3, 30])
def test_trained_statistic_is_the_served_one(
    aggregator: Aggregator, n_tokens: int
) -> None:
    """
    What training takes its loss through is what the aggregator gives when served.
    """
    evidence = floats(n_tokens, aggregator.n_columns, seed=70)

    trained = statistic(aggregator, torch.from_numpy(evidence), is_hard=True)

    assert float(trained) == pytest.approx(aggregator.aggregate(evidence), rel=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 15, 16, 40])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_swim_loss_equals_a_plain_loop(n_tokens: int, label: float) -> None:
    """
    The loss is the formula's: sliding means, weighted by their own softmax.
    """
    logits = floats(n_tokens, seed=71) * np.float32(3)
    window = min(16, n_tokens)
    means = [
        sum(logits[end - window : end].tolist()) / window
        for end in range(window, n_tokens + 1)
    ]
    weights = [math.exp(mean / 0.5) for mean in means]
    losses = [-math.log(1 / (1 + math.exp(-mean if label else mean))) for mean in means]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(
        weights
    )

    loss = swim_loss(torch.from_numpy(logits), label, window=16, temperature=0.5)

    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_swim_finds_a_planted_direction(tmp_path: Path) -> None:
    """
    Trained on its sliding means, a linear probe finds the direction that moves.
    """
    rng = np.random.default_rng(3)
    with DatasetWriter(tmp_path / "d", identity(), [HOOK_POINT], D_MODEL) as writer:
        for index in range(300):
            rows = rng.normal(size=(30, D_MODEL)).astype(np.float32)
            rows[10:26, 4] += 2 * (index % 2)
            writer.append(
                f"r{index}",
                {HOOK_POINT: rows},
                np.arange(30),
                np.arange(30),
                n_prompt_tokens=2,
                labels={"agree": index % 2 == 1},
            )
    dataset = load_dataset(tmp_path / "d")

    options = TrainingOptions(steps=150, batch_size=64, learning_rate=1e-2)

    probe = fit_swim(task(dataset), options=options)

    weight = probe.weight / np.linalg.norm(probe.weight)
    assert weight[4] >= 0.8
    assert SlidingMeanMax(window=16) == probe.aggregator
    assert separation(dataset, probe) >= 0.99


def test_progress_counts_every_step(train_set: Dataset) -> None:
    """
    Progress is told after each step, to the last.
    """
    steps: list[tuple[int, int]] = []
    options = TrainingOptions(steps=3, batch_size=4)

    fit_swim(
        task(train_set), options=options, progress=lambda *step: steps.append(step)
    )

    assert [(1, 3), (2, 3), (3, 3)] == steps


def test_empty_classes_are_refused(train_set: Dataset) -> None:
    """
    Without requests of both kinds, or with one of both, nothing is trained.
    """
    positive, negative = split(train_set)
    for a, b, match in (
        (positive, [], r"'xor': expected tokens of both kinds.* 0 negative"),
        ([], negative, r"'xor': expected tokens of both kinds, got 0 positive"),
        (positive, [positive[0], *negative], r"got '1-\d+' as both"),
    ):
        bad = Task(
            dataset=train_set, name="xor", hook_point=HOOK_POINT, positive=a, negative=b
        )
        with pytest.raises(ValueError, match=match):
            fit_mlp(bad, Mean(), OPTIONS)


def test_missing_torch_says_what_to_install(
    train_set: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Without PyTorch the error is one line that says what to install.
    """
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(ValueError, match=r"PyTorch, pip install 'innerwatch\[train\]'"):
        fit_swim(task(train_set))


def test_a_rate_that_diverges_is_refused(train_set: Dataset) -> None:
    """
    A loss that overflows is an error that names the learning rate.
    """
    options = NonlinearOptions(
        width=4, training=TrainingOptions(steps=20, learning_rate=1e30)
    )

    with pytest.raises(ValueError, match=r"learning_rate: expected one that converges"):
        fit_mlp(task(train_set), Mean(), options)


def test_folded_layer_equals_standardising_first() -> None:
    """
    The folded layer on raw activations gives what the trained one gives on scaled ones.
    """
    rows: Float32 = floats(50, D_MODEL, seed=72) * np.float32(7) + np.float32(30)
    rows[:, 3] = 2  # does not move
    half = np.arange(25, dtype=np.int64)
    scaler = Scaler.of(rows, Bags(positive=(half,), negative=(half + 25,)), seed=0)
    weight, bias = floats(4, D_MODEL).astype(np.float64), floats(4).astype(np.float64)

    raw_weight, raw_bias = scaler.fold(weight, bias)

    expected = scaler(rows) @ weight.T + bias
    np.testing.assert_allclose(expected, rows @ raw_weight.T + raw_bias, atol=1e-3)
