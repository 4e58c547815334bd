# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""Directions from means, and recipes of every family that labels are fitted for."""

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

from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from probes import Dataset, DatasetWriter, LinearProbe, Max, RecipeError, load_dataset
from probes.arrays import Float32, Float64
from probes.fit.directions import (
    ContrastOptions,
    PersonaOptions,
    fit_contrast,
    fit_persona,
)
from probes.fit.evaluate import auroc, request_statistics
from probes.fit.logistic import LogisticOptions
from probes.fit.recipe import fit_bundle
from probes.fit.select import Selector, select_requests

N_PAIRS = 60
EVIL = Selector(label="evil", equals=True)


def direction() -> Float32:
    found = floats(D_MODEL, seed=90)
    unit: Float32 = found / np.linalg.norm(found)
    return unit


def write(path: Path, seed: int) -> Dataset:
    """
    Pairs of requests about one topic, of which the second moves along `direction`.

    Topics differ more than the two of a pair do. Five personas carry more or less of
    the direction.
    """
    rng, hooks = np.random.default_rng(seed), [HOOK_POINT, LATER_HOOK_POINT]
    with DatasetWriter(path, identity(), hooks, D_MODEL) as writer:
        for index in range(2 * N_PAIRS):
            pair, is_evil = index // 2, bool(index % 2)
            topic = np.random.default_rng([seed, pair]).normal(size=D_MODEL) * 2
            topic -= (topic @ direction()) * direction()
            n = int(rng.integers(6, 12))
            push = 3 + rng.normal() if is_evil else 0
            rows = rng.normal(size=(n, D_MODEL)) + topic + push * direction() + 10
            found = rows.astype(np.float32)
            writer.append(
                f"{seed}-{index}",
                {HOOK_POINT: found, LATER_HOOK_POINT: found[:, ::-1].copy()},
                rng.integers(0, 1 << 20, n),
                np.arange(n),
                n_prompt_tokens=3,
                labels={
                    "evil": is_evil,
                    "topic": pair,
                    "persona": f"p{pair % 3}{is_evil}",
                },
            )
    return load_dataset(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("directions")
    for seed, name in enumerate(("fit", "calibration", "test")):
        write(path / name, seed)
    return path


@pytest.fixture(scope="module")
def fit(folder: Path) -> Dataset:
    return load_dataset(folder / "fit")


def contrast(dataset: Dataset, direction: str) -> LinearProbe:
    return fit_contrast(
        dataset,
        name="evil",
        hook_point=HOOK_POINT,
        positive=select_requests(dataset, EVIL),
        negative=select_requests(dataset, EVIL, is_negated=True),
        aggregator=Max(),
        options=ContrastOptions(pair="topic", direction=direction),
    )


def differences(dataset: Dataset) -> Float64:
    """Each pair's difference of request means, (n_pairs, d_model)."""
    means = [
        dataset.activations[HOOK_POINT][dataset.rows_of(index)].mean(axis=0)
        for index in range(2 * N_PAIRS)
    ]
    return np.array(means[1::2], np.float64) - np.array(means[::2], np.float64)


def test_contrast_is_the_mean_difference(fit: Dataset) -> None:
    """
    The direction is the mean of the pairs' differences, whatever the topics are.
    """
    probe = contrast(fit, "mean")

    np.testing.assert_allclose(
        differences(fit).mean(axis=0), probe.weight, rtol=1e-4, atol=1e-5
    )
    assert probe.weight @ direction() / np.linalg.norm(probe.weight) >= 0.98


def test_principal_contrast_is_the_first_component(fit: Dataset) -> None:
    """
    The direction is the top principal component of the pairs' differences of either
    sign, turned so that the positive requests score higher.
    """
    rows = differences(fit)
    both = np.vstack([rows, -rows])  # what swapping a pair at random leaves
    expected = PCA(n_components=1).fit(both).components_[0]

    probe = contrast(fit, "principal")

    assert abs(expected @ probe.weight) == pytest.approx(1, abs=1e-5)
    assert probe.weight @ direction() >= 0.98


def test_pairs_that_do_not_meet_are_refused(fit: Dataset) -> None:
    """
    Without a value that a positive and a negative request share there is no pair.
    """
    with pytest.raises(
        ValueError, match=r"'evil': pair: .* share a value of 'persona'"
    ):
        fit_contrast(
            fit,
            name="evil",
            hook_point=HOOK_POINT,
            positive=select_requests(fit, EVIL),
            negative=select_requests(fit, EVIL, is_negated=True),
            aggregator=Max(),
            options=ContrastOptions(pair="persona"),
        )


def persona(dataset: Dataset, n_components: int) -> LinearProbe:
    return fit_persona(
        dataset,
        name="evil",
        hook_point=HOOK_POINT,
        positive=select_requests(dataset, EVIL),
        negative=select_requests(dataset, EVIL, is_negated=True),
        aggregator=Max(),
        options=PersonaOptions(
            persona="persona", n_components=n_components, logistic=LogisticOptions()
        ),
    )


def test_persona_probe_is_folded_back(fit: Dataset) -> None:
    """
    One direction scores as a logistic regression on persona coordinates does.
    """
    labels = np.array([str(request.labels["persona"]) for request in fit.requests])
    activations = fit.activations[HOOK_POINT].astype(np.float64)
    means = np.array(
        [activations[fit.rows_of(i)].mean(axis=0) for i in range(len(labels))]
    )
    personas = np.array(
        [means[labels == one].mean(axis=0) for one in np.unique(labels)]
    )
    coordinates = PCA(n_components=3).fit(personas).transform(activations)
    owners = np.repeat(np.arange(len(labels)), [r.n_rows for r in fit.requests])
    is_evil = np.array([bool(r.labels["evil"]) for r in fit.requests])[owners]
    scaled = coordinates / coordinates.std(axis=0)
    scaled -= scaled.mean(axis=0)
    model = LogisticRegression(class_weight="balanced", max_iter=5000)
    expected = model.fit(scaled, is_evil).decision_function(scaled)

    probe = persona(fit, 3)

    logits = activations @ probe.weight.astype(np.float64) + probe.bias
    np.testing.assert_allclose(expected, logits, atol=1e-3)


def test_more_components_than_personas_are_refused(fit: Dataset) -> None:
    """
    Six personas span five directions at most.
    """
    with pytest.raises(ValueError, match="n_components: expected 1 to 5 of 6 values"):
        persona(fit, 6)


HEAD = """
name = "labelled"
version = "1"

[calibration]
alpha = 0.1

"""
DETECTOR = f"""
[[detector]]
name = "evil"
hook_point = "{HOOK_POINT}"
positive = {{ label = "evil", equals = true }}
"""
TRAINED = "steps = 150\nbatch_size = 8\nlearning_rate = 0.02\n"
HEADS = '{ name = "NAME", n_heads = 2 }'
FAMILIES = {
    "logistic": "",
    "logistic-stream": 'family = "logistic"\nsolver = "stream"\nrounds = 1\n',
    "mass_mean": 'tokens = "completion"\n',
    "lda": "",
    "contrast": 'pair = "topic"\ndirection = "principal"\n',
    "persona": 'persona = "persona"\nn_components = 5\n',
    "all_layers": f'hook_points = ["{HOOK_POINT}", "{LATER_HOOK_POINT}"]\n',
    "all_layers-all": 'family = "all_layers"\n',
    "mlp": f"width = 8\n{TRAINED}",
    "attention": f"width = 8\naggregator = {HEADS}\n{TRAINED}".replace(
        "NAME", "rolling_attention_max"
    ),
    "multi_max": f"width = 8\nis_hard = true\naggregator = {HEADS}\n{TRAINED}".replace(
        "NAME", "multi_max"
    ),
    "swim": f"temperature = 0.5\n{TRAINED}",
}


def recipe(path: Path, family: str, extra: str) -> Path:
    """A recipe of one detector."""
    text = DETECTOR + (extra if "family" in extra else f'family = "{family}"\n{extra}')
    if family.startswith("all_layers"):
        text = text.replace(f'hook_point = "{HOOK_POINT}"\n', "")
    path.write_text(HEAD + text)
    return path


def two(folder: Path) -> tuple[Dataset, Dataset]:
    """What to fit on and what to calibrate on."""
    return load_dataset(folder / "fit"), load_dataset(folder / "calibration")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_asked_for(
    folder: Path, tmp_path: Path, family: str
) -> None:
    """
    A recipe of each family is fitted to a detector that finds the planted behaviour.
    """
    pytest.importorskip("torch")
    path = recipe(tmp_path / "recipe.toml", family, FAMILIES[family])

    bundles = [fit_bundle(path, *two(folder), work=tmp_path / "work") for _ in range(2)]

    assert bundles[0].digest == bundles[1].digest
    assert not any((tmp_path / "work").glob("*"))
    test = load_dataset(folder / "test")
    statistics = request_statistics(test, bundles[0].detectors[0])
    is_evil = np.array([EVIL.matches(request) for request in test.requests])
    assert auroc(statistics[is_evil], statistics[~is_evil]) >= 0.85


def test_streamed_mahalanobis_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    """
    A Mahalanobis detector takes all benign tokens, in passes, if it is told to.
    """
    extra = 'family = "mahalanobis"\nsolver = "stream"\nrank = 3\n'
    path = recipe(tmp_path / "recipe.toml", "mahalanobis", extra)
    text = path.read_text().replace("positive", "benign").replace("true", "false")
    path.write_text(text)

    assert 1 == len(fit_bundle(path, *two(folder)).detectors)


MISTAKES = [
    ("lda", "max_rows = 5", r"detector\[0\]\.max_rows: unknown key"),
    ("lda", "tokens = 'middle'", r"detector\[0\]\.tokens: expected one of"),
    ("logistic", 'solver = "disk"', r"detector\[0\]\.solver: expected one of"),
    ("logistic", 'solver = "stream"\nseed = 1', r"detector\[0\]\.seed: unknown key"),
    ("contrast", "", r"detector\[0\]\.pair: expected a string, found nothing"),
    ("contrast", 'pair = "x"', r"detector\[0\]: probe 'evil': pair: .* 'x'"),
    (
        "contrast",
        'pair = "topic"\ndirection = "up"',
        r"detector\[0\]\.direction: expected one of",
    ),
    ("persona", 'persona = "persona"', r"detector\[0\]\.n_components"),
    ("all_layers", 'hook_points = ["x"]', r"detector\[0\]\.hook_points"),
    (
        "all_layers",
        'hook_points = ["blocks.1.hook_resid_post", "blocks.7.hook_resid_post"]',
        r"detector\[0\]: hook_points: expected one of .*blocks\.7",
    ),
    ("mlp", "width = 0", r"detector\[0\]\.width: expected an integer of at least 1"),
    ("mlp", "learning_rate = -1", r"detector\[0\]\.learning_rate: expected a positive"),
    ("mlp", "is_hard = 1", r"detector\[0\]\.is_hard: expected true or false"),
    (
        "mlp",
        'aggregator = { name = "multi_max", n_heads = 2 }',
        r"detector\[0\]\.aggregator",
    ),
    ("attention", 'aggregator = { name = "max" }', r"detector\[0\]\.aggregator"),
    ("swim", "temperature = 0.0", r"detector\[0\]\.temperature: expected a positive"),
    ("swim", 'aggregator = { name = "max" }', r"detector\[0\]\.aggregator"),
]


@pytest.mark.parametrize(
    ("family", "extra", "match"), MISTAKES, ids=[f"{m[0]}-{m[1]}" for m in MISTAKES]
)
def test_mistake_is_named(
    folder: Path, tmp_path: Path, family: str, extra: str, match: str
) -> None:
    """
    A mistake is one line that names the recipe, the detector and the key.
    """
    path = recipe(tmp_path / "recipe.toml", family, f"{extra}\n")

    with pytest.raises(RecipeError, match=rf"recipe.toml: {match}") as caught:
        fit_bundle(path, *two(folder))

    assert "\n" not in str(caught.value)
