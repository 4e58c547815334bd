# ruff: noqa: E402 - scikit-learn is imported once it is known to be there.
"""Fitting, from two data sets and a recipe to a bundle."""

from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    floats,
    require_sklearn,
    write_dataset,
    write_sae,
)

require_sklearn()

from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from probes import (
    ArtifactError,
    Dataset,
    DatasetWriter,
    Max,
    RecipeError,
    load_dataset,
    score,
)
from probes import save_bundle as save
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.judge import judge
from probes.fit.logistic import LogisticOptions, fit_logistic
from probes.fit.mahalanobis import fit_mahalanobis
from probes.fit.recipe import fit_bundle
from probes.fit.select import Selector, rows_of_tokens, select_requests
from probes.fit.trajectories import trajectories

BACKDOOR = Selector(label="behaviour", equals="backdoor")
RECIPE = f"""
name = "demo"
version = "1"
[calibration]
alpha = 0.1

[[detector]]
name = "backdoor"
family = "logistic"
hook_point = "{HOOK_POINT}"
aggregator = {{ name = "ema_max", alpha = 0.5 }}
positive = {{ label = "behaviour", equals = "backdoor" }}
tokens = "completion"

[[detector]]
name = "odd"
family = "mahalanobis"
hook_point = "{HOOK_POINT}"
benign = {{ label = "behaviour", equals = "none" }}
rank = 6

[[detector]]
name = "feature"
family = "sae"
hook_point = "{HOOK_POINT}"
benign = {{ label = "behaviour", equals = "none" }}
path = "sae"
features = [3, 5]
model_name = "tiny"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit")
    write_dataset(path / "fit", seed=1, n_requests=120)
    write_dataset(path / "calibration", seed=2, n_requests=240)
    write_dataset(path / "test", seed=3, n_requests=300)
    cfg: dict[str, object] = {"hook_name": HOOK_POINT, "model_name": "tiny"}
    write_sae(path / "sae", cfg)
    (path / "recipe.toml").write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def fit(folder: Path) -> Dataset:
    return load_dataset(folder / "fit")


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Dataset:
    return load_dataset(folder / "calibration")


@pytest.mark.parametrize("tokens", ["all", "completion"])
def test_probe_finds_the_planted_behaviour(
    folder: Path, fit: Dataset, tokens: str
) -> None:
    """
    From labels of whole requests, the probe separates other requests at 0.99.
    """
    probe = fit_logistic(
        fit,
        name="p",
        hook_point=HOOK_POINT,
        positive=select_requests(fit, BACKDOOR),
        negative=select_requests(fit, BACKDOOR, is_negated=True),
        aggregator=Max(),
        options=LogisticOptions(tokens=tokens),
    )

    test = load_dataset(folder / "test")
    positive = request_statistics(test, probe, select_requests(test, BACKDOOR))
    negative = request_statistics(
        test, probe, select_requests(test, BACKDOOR, is_negated=True)
    )
    assert auroc(positive, negative) >= 0.99


def test_full_rank_equals_scikit_learn(fit: Dataset) -> None:
    """
    The detector's distance is that of the covariance it was fitted with.
    """
    benign = select_requests(fit, BACKDOOR, is_negated=True)
    rows = np.concatenate([fit.activations[HOOK_POINT][fit.rows_of(i)] for i in benign])
    detector = fit_mahalanobis(
        fit, name="m", hook_point=HOOK_POINT, benign=benign, aggregator=Max()
    )
    x = floats(30, D_MODEL, seed=5) * np.float32(2)

    expected = LedoitWolf().fit(rows.astype(np.float64)).mahalanobis(x)

    evidence = score(detector, {HOOK_POINT: x})[:, 0]
    np.testing.assert_allclose(evidence, expected, rtol=1e-4)


def test_bundle_keeps_its_promise(
    folder: Path, fit: Dataset, calibration: Dataset
) -> None:
    """
    All detectors together flag few new benign requests, and the planted ones.
    """
    steps: list[tuple[int, int, str]] = []
    bundle = fit_bundle(
        folder / "recipe.toml", fit, calibration, lambda *step: steps.append(step)
    )

    test = load_dataset(folder / "test")
    everyone = range(len(test.requests))
    found = trajectories(test, bundle.detectors, everyone)
    flags = judge(found, bundle.calibration).is_flagged
    is_flagged = np.asarray(flags.any(axis=1))
    is_planted = np.array([BACKDOOR.matches(r) for r in test.requests])
    # 200 benign requests at 0.1: three standard deviations above are 0.164.
    assert is_flagged[~is_planted].mean() <= 0.164
    assert is_flagged[is_planted].mean() >= 0.95
    assert (4, 4, "done") == steps[-1]


def test_same_inputs_same_bytes(
    folder: Path, fit: Dataset, calibration: Dataset, tmp_path: Path
) -> None:
    """
    Fitting twice gives one digest, the one that it has on disk.
    """
    bundles = [fit_bundle(folder / "recipe.toml", fit, calibration) for _ in range(2)]

    assert bundles[0].digest == bundles[1].digest
    assert bundles[0].digest == save(tmp_path / "bundle", bundles[0])


def test_calibrating_on_the_fitted_requests_is_refused(
    folder: Path, fit: Dataset
) -> None:
    """
    A threshold chosen on what was fitted would promise nothing, and is refused.
    """
    with pytest.raises(ArtifactError, match="same data set"):
        fit_bundle(folder / "recipe.toml", fit, fit)


def copy_dataset(
    source: Dataset, path: Path, *, name: str = "other", token_ids: str = "other"
) -> Dataset:
    """Ten requests of *source*, ids and tokens either the "same" or "other" ones."""
    d_model = source.identity.d_model
    with DatasetWriter(path, source.identity, [HOOK_POINT], d_model) as writer:
        for index, request in enumerate(source.requests[:10]):
            rows = source.rows_of(index)
            tokens = source.token_ids[rows]
            changed = {"same": tokens, "other": tokens + 1, "unknown": tokens * 0 - 1}
            writer.append(
                request.request_id if name == "same" else f"other-{index}",
                {HOOK_POINT: source.activations[HOOK_POINT][rows]},
                changed[token_ids],
                source.positions[rows],
                request.n_prompt_tokens,
                request.labels,
            )
    return load_dataset(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "same"}, "'request-1-0' in both"),
        ({"token_ids": "same"}, "the tokens of 'request-1-0' again in 'other-0'"),
    ],
)
def test_a_request_in_both_data_sets_is_refused(
    folder: Path, fit: Dataset, tmp_path: Path, changes: dict[str, str], match: str
) -> None:
    """
    The promise needs requests that were not fitted on: neither their ids nor tokens.
    """
    calibration = copy_dataset(fit, tmp_path / "x", **changes)

    with pytest.raises(ArtifactError, match=match) as caught:
        fit_bundle(folder / "recipe.toml", fit, calibration)

    assert "\n" not in str(caught.value)


def test_unknown_tokens_are_not_the_same_tokens(
    folder: Path, fit: Dataset, tmp_path: Path
) -> None:
    """
    Requests whose tokens nobody sent are told apart by their ids alone.
    """
    one, other = (
        copy_dataset(fit, tmp_path / kind, name=kind, token_ids="unknown")
        for kind in ("same", "other")
    )

    with pytest.raises(RecipeError, match="benign requests"):  # ten are too few
        fit_bundle(folder / "recipe.toml", one, other)


@pytest.mark.parametrize("key", ["", 'model_name = "llama"'])
def test_an_sae_of_another_model_is_refused(
    folder: Path, fit: Dataset, calibration: Dataset, tmp_path: Path, key: str
) -> None:
    """
    An SAE of the right width is refused unless the recipe says that its model is ours.
    """
    cfg: dict[str, object] = {"hook_name": HOOK_POINT, "model_name": "gpt2-small"}
    write_sae(tmp_path / "sae", cfg)
    recipe = tmp_path / "recipe.toml"

    unnamed = RECIPE.replace('model_name = "tiny"', "")
    recipe.write_text(f"{unnamed}\n{key}")
    with pytest.raises(RecipeError, match=r"model_name: .*'gpt2-small'"):
        fit_bundle(recipe, fit, calibration)

    recipe.write_text(f'{unnamed}\nmodel_name = "gpt2-small"')
    assert 3 == len(fit_bundle(recipe, fit, calibration).detectors)


MISTAKES = [
    ("alpha = 0.1", "alpha = 1.5", r"recipe.toml: calibration.alpha: expected"),
    ("alpha = 0.1", "", r"calibration.alpha: expected a number, found nothing"),
    (
        "alpha = 0.1",
        "alpha = 0.1\nmore = 1",
        r"calibration.more: unknown key",
    ),
    ("rank = 6", "rnak = 6", r"detector\[1\]\.rnak: unknown key"),
    ("rank = 6", "rank = 0", r"detector\[1\]\.rank"),
    ("rank = 6", "rank = 13", r"detector\[1\]: rank: expected 1 to 12"),
    ("mahalanobis", "forest", r"detector\[1\]\.family"),
    ('"odd"', '"backdoor"', r"detector: expected different names"),
    ('"odd"', '"o d"', r"detector\[1\]\.name"),
    ("completion", "middle", r"detector\[0\]\.tokens"),
    ("alpha = 0.5 }", "alpha = 5 }", r"detector\[0\]\.aggregator\.alpha"),
    ("alpha = 0.5 }", "beta = 5 }", r"detector\[0\]\.aggregator\.beta: unknown"),
    ("[3, 5]", "[3, 500]", r"detector\[2\]: .*features"),
    (
        "[3, 5]",
        f"[3, 5]\nfeature_weights = [1, {10**400}]",
        r"feature_weights\[1\]: expected",
    ),
    ("alpha = 0.1", f"alpha = {10**400}", r"calibration.alpha: expected a finite"),
    ("[3, 5]", "[true]", r"detector\[2\]\.features"),
    ('path = "sae"', 'path = "no"', r"detector\[2\]: .*no: expected a folder"),
    ('path = "sae"', 'path = "sae"\nformat = "x"', r"detector\[2\]\.format: expected"),
    ("[3, 5]", "[3, 5]\nscale = 2", r"detector\[2\]: .*scale: expected"),
    ("[3, 5]", "[3, 5]\nk = 2", r"detector\[2\]: .*k: expected none"),
    ('equals = "backdoor"', 'equals = "x"', r"detector\[0\]: .*0 positive"),
    ('equals = "backdoor"', "is = 1", r"detector\[0\]\.positive\.equals"),
    ("alpha = 0.1", "alpha = 0.001", r"calibration: .*at least 1998 benign"),
    ("blocks.1.", "blocks.2.", r"detector\[0\]: hook_point"),
    ("[[detector]]", "[[detector", r"expected TOML"),
]


@pytest.mark.parametrize(
    ("old", "new", "match"), MISTAKES, ids=[m[2] for m in MISTAKES]
)
def test_mistake_in_a_recipe_is_named(
    folder: Path, fit: Dataset, calibration: Dataset, old: str, new: str, match: str
) -> None:
    """
    A mistake is one line that names the recipe, the detector and the key.
    """
    assert old in RECIPE
    path = folder / "mistaken" / "recipe.toml"
    path.parent.mkdir(exist_ok=True)
    text = RECIPE.replace(old, new).replace('"sae"\nfeat', '"../sae"\nfeat')
    path.write_text(text)

    with pytest.raises(RecipeError, match=match) as caught:
        fit_bundle(path, fit, calibration)

    assert "\n" not in str(caught.value)


def test_auroc_equals_scikit_learn() -> None:
    """
    With and without ties, the area equals scikit-learn's.
    """
    rng = np.random.default_rng(0)
    positive = np.round(rng.normal(0.5, 1, 300), 1)
    negative = np.round(rng.normal(0, 1, 500), 1)

    is_positive = np.arange(800) < 300
    expected = roc_auc_score(is_positive, np.concatenate([positive, negative]))

    assert auroc(positive, negative) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_statistics_equal_the_plain_twin(fit: Dataset, tokens: str) -> None:
    """
    Scoring in groups gives each request what it gets by itself.
    """
    detector = fit_mahalanobis(
        fit,
        name="m",
        hook_point=HOOK_POINT,
        benign=range(20),
        aggregator=Max(tokens=tokens),
        rank=3,
        max_rows=50,
    )
    activations = fit.activations[HOOK_POINT]

    expected = [
        detector.aggregator.aggregate(
            score(
                detector,
                {HOOK_POINT: activations[rows_of_tokens(fit, index, tokens)]},
            )
        )
        for index in (5, 0, 7)
    ]

    statistics = request_statistics(fit, detector, [5, 0, 7])
    np.testing.assert_allclose(statistics, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [("all", 0), ("completion", 4), ("prompt_end", 3), ("answer", 3)],
)
def test_tokens_are_chosen_by_position(
    fit: Dataset, tokens: str, expected: int
) -> None:
    """
    The first row of the first request that is meant, of a prompt of four.
    """
    assert expected == rows_of_tokens(fit, 0, tokens)[0]


@pytest.mark.parametrize(
    ("equals", "is_match"), [(True, True), (1, False), (1.0, False)]
)
def test_true_is_not_one(fit: Dataset, equals: bool | float, is_match: bool) -> None:
    """
    A selector tells truth values from numbers.
    """
    request = fit.requests[0]
    labelled = type(request)(
        request_id="x", first_row=0, n_rows=1, n_prompt_tokens=0, labels={"bad": True}
    )

    assert is_match is Selector(label="bad", equals=equals).matches(labelled)
