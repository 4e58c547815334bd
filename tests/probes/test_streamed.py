# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Fits in passes over a data set, against fits of everything at once."""

from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    identity,
    require_sklearn,
)

require_sklearn()

from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from probes import (
    Dataset,
    DatasetWriter,
    LinearProbe,
    Mahalanobis,
    Max,
    MultiLayerProbe,
    load_dataset,
)
from probes.arrays import Float32, Float64
from probes.fit import chunks, moments, streamed
from probes.fit.checkpoint import Checkpoint
from probes.fit.lbfgs import LBFGS
from probes.fit.logistic import LogisticOptions, fit_logistic
from probes.fit.select import rows_of_tokens
from probes.fit.streamed import StreamTask, fit_streamed

ONCE = LogisticOptions(rounds=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Tokens far from zero, of which a third of the requests' move."""
    path = tmp_path_factory.mktemp("streamed") / "data"
    rng, hooks = np.random.default_rng(5), [HOOK_POINT, LATER_HOOK_POINT]
    mix = floats(D_MODEL, D_MODEL, seed=80)
    with DatasetWriter(path, identity(), hooks, D_MODEL) as writer:
        for index in range(90):
            n = int(rng.integers(5, 15))
            rows = [
                (rng.normal(size=(n, D_MODEL)) @ mix).astype(np.float32) + 50
                for _ in hooks
            ]
            for each in rows:
                each[:, 2] += 2 * (index % 3 == 0)
            writer.append(
                f"r{index}",
                dict(zip(hooks, rows, strict=True)),
                rng.integers(0, 999, n),
                np.arange(n),
                n_prompt_tokens=3,
                labels={},
            )
    return load_dataset(path)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass has many chunks, and is saved between them."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * D_MODEL * 37)
    monkeypatch.setattr(moments, "_CHUNKS_A_SAVE", 3)


def task(
    dataset: Dataset,
    name: str,
    *,
    kind: str,
    hook_points: tuple[str, ...] = (HOOK_POINT,),
    step: int = 3,
    logistic: LogisticOptions = ONCE,
    rank: int | None = None,
) -> StreamTask:
    """Every *step*-th request against the others."""
    bags = [rows_of_tokens(dataset, index, "all") for index in range(90)]
    return StreamTask(
        name=name,
        kind=kind,
        hook_points=hook_points,
        positive=() if kind == "mahalanobis" else tuple(bags[::step]),
        negative=tuple(bag for index, bag in enumerate(bags) if index % step),
        aggregator=Max(),
        logistic=logistic,
        rank=rank,
    )


def rows_of(task: StreamTask, dataset: Dataset) -> tuple[Float64, Float64]:
    """Positive and negative activations of *task*."""
    wide = np.hstack([dataset.activations[h] for h in task.hook_points])
    above, below = (
        wide[[row for rows in bags for row in rows]].astype(np.float64)
        for bags in (task.positive, task.negative)
    )
    return above, below


def fit(dataset: Dataset, *tasks: StreamTask) -> list[LinearProbe]:
    made = list(fit_streamed(dataset, tasks).values())
    assert all(isinstance(probe, LinearProbe) for probe in made)
    return made  # type: ignore[return-value]


def test_mass_mean_is_the_difference_of_means(dataset: Dataset) -> None:
    """
    The direction is mu+ - mu-, and evidence is zero halfway between them.
    """
    one = task(dataset, "m", kind="mass_mean")
    above, below = (rows.mean(axis=0) for rows in rows_of(one, dataset))

    (probe,) = fit(dataset, one)

    np.testing.assert_allclose(above - below, probe.weight, rtol=1e-5, atol=1e-6)
    assert (above + below) / 2 @ probe.weight + probe.bias == pytest.approx(0, abs=1e-4)


def test_lda_whitens_within_the_classes(dataset: Dataset) -> None:
    """
    The direction is the mass-mean behind the shrunk covariance within the classes.
    """
    one = task(dataset, "l", kind="lda")
    above, below = rows_of(one, dataset)
    x = np.concatenate([above, below])
    n, d = x.shape
    total = LedoitWolf().fit(x)
    # The shrinkage of the total covariance, as a shrinkage within the classes.
    shrunk = total.shrinkage_ * np.trace(np.cov(x.T, bias=True)) / d * np.eye(d)
    centred = np.vstack([above - above.mean(axis=0), below - below.mean(axis=0)])
    within = (1 - total.shrinkage_) * centred.T @ centred / n + shrunk
    expected = np.linalg.solve(within, above.mean(axis=0) - below.mean(axis=0))

    (probe,) = fit(dataset, one)

    np.testing.assert_allclose(expected, probe.weight, rtol=1e-4, atol=1e-5)
    middle = (above.mean(axis=0) + below.mean(axis=0)) / 2
    assert middle @ probe.weight + probe.bias == pytest.approx(0, abs=1e-3)


def test_covariance_equals_scikit_learn(dataset: Dataset) -> None:
    """
    One pass gives Ledoit and Wolf's covariance, though the mean is far from zero.
    """
    one = task(dataset, "d", kind="mahalanobis")
    _, below = rows_of(one, dataset)
    mask = np.zeros(len(dataset.positions), dtype=bool)
    mask[np.concatenate(one.negative)] = True

    found = moments.gather(
        dataset, [HOOK_POINT], {"a": mask}, ["a"], Checkpoint(None, "x", [])
    )["a"]

    expected = LedoitWolf().fit(below)
    assert found.shrinkage == pytest.approx(expected.shrinkage_, rel=1e-8)
    np.testing.assert_allclose(
        expected.covariance_, found.shrunk_covariance(), rtol=1e-8, atol=1e-8
    )
    np.testing.assert_allclose(expected.location_, found.mean, rtol=1e-12)


def test_mahalanobis_keeps_its_rank(dataset: Dataset) -> None:
    """
    A Mahalanobis detector is made from the moments of benign rows alone.
    """
    made = fit_streamed(dataset, [task(dataset, "d", kind="mahalanobis", rank=4)])["d"]

    assert isinstance(made, Mahalanobis)
    assert 4 == made.rank


@pytest.mark.parametrize("hook_points", [(HOOK_POINT,), (HOOK_POINT, LATER_HOOK_POINT)])
def test_logistic_equals_scikit_learn(
    dataset: Dataset, hook_points: tuple[str, ...]
) -> None:
    """
    In passes, the regression over one or all layers ends where scikit-learn's does.
    """
    one = task(dataset, "r", kind="logistic", hook_points=hook_points)
    above, below = rows_of(one, dataset)
    x = np.concatenate([above, below])
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    model = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=9999)
    model.fit(scaled, np.arange(len(x)) < len(above))

    made = fit_streamed(dataset, [one])["r"]

    weights: Float32 = (
        made.weights.ravel() if isinstance(made, MultiLayerProbe) else made.weight  # type: ignore[attr-defined]
    )
    expected = model.coef_[0] / x.std(axis=0)
    np.testing.assert_allclose(expected, weights, rtol=0.02, atol=2e-3)


def test_rounds_equal_the_fit_in_memory(dataset: Dataset) -> None:
    """
    Over two rounds, the same tokens of each request are kept as by `fit_logistic`.
    """
    options = LogisticOptions(rounds=2, keep=0.25)
    one = task(dataset, "r", kind="logistic", logistic=options)
    expected = fit_logistic(
        dataset,
        name="r",
        hook_point=HOOK_POINT,
        positive=range(0, 90, 3),
        negative=[i for i in range(90) if i % 3],
        aggregator=Max(),
        options=options,
    )

    (probe,) = fit(dataset, one)

    cosine = probe.weight @ expected.weight
    cosine /= np.linalg.norm(probe.weight) * np.linalg.norm(expected.weight)
    assert cosine >= 0.99


def all_tasks(dataset: Dataset) -> list[StreamTask]:
    return [
        task(dataset, "m", kind="mass_mean"),
        task(dataset, "l", kind="lda"),
        task(dataset, "l5", kind="lda", step=5),
        task(dataset, "d", kind="mahalanobis", rank=4),
        task(dataset, "r", kind="logistic", logistic=LogisticOptions(rounds=2)),
        task(dataset, "r5", kind="logistic", step=5),
    ]


def weights_of(dataset: Dataset, work: Path | None = None) -> list[bytes]:
    made = fit_streamed(dataset, all_tasks(dataset), work=work)
    return [d.projections[0].weight.tobytes() for d in made.values()]


def test_sharing_passes_changes_nothing(dataset: Dataset) -> None:
    """
    A detector fitted with others is the one fitted by itself.
    """
    together = fit_streamed(dataset, all_tasks(dataset))

    for one in all_tasks(dataset):
        alone = fit_streamed(dataset, [one])[one.name]
        np.testing.assert_allclose(
            alone.projections[0].weight,
            together[one.name].projections[0].weight,
            rtol=1e-4,
            atol=1e-5,
        )


def test_more_passes_for_more_covariances(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where memory is given for one covariance, each has a pass and nothing else changes.
    """
    whole, n_chunks = weights_of(dataset), _n_chunks(dataset)

    monkeypatch.setattr(streamed, "COVARIANCE_BYTES", 8 * D_MODEL**2)

    assert whole == weights_of(dataset)
    # Two different sets of rows: all of them, for l and l5, and the benign ones of d.
    a_pass = -(-len(dataset.positions) // 37)
    assert n_chunks + a_pass == _n_chunks(dataset)


class _InterruptedError(Exception):
    """Somebody stopped the fit."""


@pytest.mark.parametrize("n_chunks", [4, 11, 40, 90, 150, 10**6])
def test_an_interrupted_fit_goes_on(
    dataset: Dataset, tmp_path: Path, n_chunks: int
) -> None:
    """
    Stopped anywhere and begun again, a fit gives the same bytes with less left to do.
    """
    seen: list[tuple[int, int, str]] = []

    def stop(*step: int | str) -> None:
        seen.append(step)  # type: ignore[arg-type]
        if len(seen) == n_chunks:
            raise _InterruptedError

    whole = weights_of(dataset)
    try:
        fit_streamed(dataset, all_tasks(dataset), work=tmp_path, progress=stop)
    except _InterruptedError:
        assert any(tmp_path.iterdir())
        again: list[str] = []
        made = fit_streamed(
            dataset,
            all_tasks(dataset),
            work=tmp_path,
            progress=lambda done, total, text: again.append(text),
        )
        assert whole == [d.projections[0].weight.tobytes() for d in made.values()]
        n_whole = _n_chunks(dataset)
        assert len(again) < n_whole
        assert n_whole <= n_chunks + len(again) <= n_whole + 2 * 25
    else:
        assert 10**6 == n_chunks
    assert not any(tmp_path.iterdir())


def _n_chunks(dataset: Dataset) -> int:
    seen: list[str] = []
    fit_streamed(
        dataset,
        all_tasks(dataset),
        progress=lambda done, total, text: seen.append(text),
    )
    return len(seen)


def test_the_state_of_another_fit_is_not_read(dataset: Dataset, tmp_path: Path) -> None:
    """
    What another fit left, or nobody can read, is begun anew and not trusted.
    """
    mine, other = (Checkpoint(tmp_path, "x", [key]) for key in (b"mine", b"other"))
    other.save({"a": np.ones(3)})

    assert mine.load() is None
    assert other.load() is not None
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 torn")
    assert other.load() is None


def test_minimiser_finds_the_minimum_of_a_quadratic() -> None:
    """
    Told values of an ill-conditioned quadratic, L-BFGS ends at its minimum.
    """
    scales, target = np.logspace(-1, 1, 20), np.linspace(-3, 3, 20)
    minimiser = LBFGS(np.zeros(20), tolerance=1e-8)
    n_evaluations = 0
    while not minimiser.is_done and n_evaluations < 500:
        gap = minimiser.point - target
        minimiser.tell(float(scales @ gap**2) / 2, scales * gap)
        n_evaluations += 1

    assert minimiser.is_done
    np.testing.assert_allclose(target, minimiser.point, atol=1e-5)


def test_best_point_is_the_lowest_told() -> None:
    """
    Cut off at any time, the minimiser has the lowest point that it was told about.
    """
    scales, target = np.logspace(-1, 3, 20), np.linspace(-3, 3, 20)
    minimiser, lowest, n_rises = LBFGS(np.zeros(20), tolerance=1e-8), np.inf, 0
    for _ in range(40):
        gap = minimiser.point - target
        value = float(scales @ gap**2) / 2
        n_rises += value > lowest
        lowest = min(value, lowest)
        minimiser.tell(value, scales * gap)

        best = float(scales @ (minimiser.best - target) ** 2) / 2
        assert best == pytest.approx(lowest, rel=1e-3)

    assert n_rises > 0  # or point would do as well


def test_what_cannot_be_fitted_is_refused(dataset: Dataset) -> None:
    """
    One class only, two names alike or an unknown kind is one line that says so.
    """
    one = task(dataset, "m", kind="mass_mean")
    with pytest.raises(ValueError, match="'m': expected tokens of both kinds, got 0"):
        StreamTask(
            name="m",
            kind="lda",
            hook_points=(HOOK_POINT,),
            positive=(),
            negative=one.negative,
            aggregator=Max(),
        )
    with pytest.raises(ValueError, match="kind: expected one of"):
        task(dataset, "m", kind="forest")
    with pytest.raises(ValueError, match="name: expected different names"):
        fit_streamed(dataset, [one, one])
