# ruff: noqa: E402 - fitting is imported once scikit-learn is known to be there.
"""``innerwatch bundle``: what is shown, what differs, what is verified."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.probes.builders import HOOK_POINT, identity, require_sklearn, write_dataset

require_sklearn()

from probes import (
    Bundle,
    DatasetWriter,
    LinearProbe,
    fixed_thresholds,
    identity_of,
    load_bundle,
    load_dataset,
    new_bundle,
    save_bundle,
)
from probes.fit.intervals import clopper_pearson
from probes.fit.recipe import fit_bundle
from service.cli import main
from tests.probes.bundle_builders import build
from tests.service.builders import assert_refused, innerwatch

RECIPE = f"""
name = "demo"
version = "1"
[calibration]
alpha = 0.05
[[detector]]
name = "probe"
family = "logistic"
hook_point = "{HOOK_POINT}"
positive = {{ label = "behaviour", equals = "backdoor" }}
[[detector]]
name = "odd"
family = "mahalanobis"
hook_point = "{HOOK_POINT}"
benign = {{ label = "behaviour", equals = "none" }}
rank = 6
"""
BENIGN = "behaviour=none"
Edit = Callable[[Bundle], Bundle]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets, a bundle that was fitted, and one that was made by hand."""
    path = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("fit", "calibration", "test"), start=1):
        write_dataset(path / name, seed=seed, n_requests=300)
    (path / "recipe.toml").write_text(RECIPE)
    fit, calibration = (load_dataset(path / name) for name in ("fit", "calibration"))
    save_bundle(path / "a", fit_bundle(path / "recipe.toml", fit, calibration))
    save_bundle(path / "hand", build(canaries=(), fit_sha256=""))
    return path


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Bundle:
    return load_bundle(folder / "a")


def run(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Run ``innerwatch bundle``; its status and what it printed."""
    capsys.readouterr()
    status = main(["bundle", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def run_json(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, dict[str, Any]]:
    """As `run`, with the JSON that it printed."""
    status, out, _ = run(capsys, *arguments, "--json")
    facts: dict[str, Any] = json.loads(out)
    return status, facts


def remade(bundle: Bundle, **changes: object) -> Bundle:
    """*bundle* with some of its parts changed, and its own digest."""
    names = ("name", "version", "identity", "detectors", "calibration", "canaries")
    parts = {name: getattr(bundle, name) for name in (*names, "fit_sha256")}
    return new_bundle(**(parts | changes))


def test_show_lists_what_is_in_a_bundle(folder: Path, fitted: Bundle) -> None:
    """
    Digest, model, detectors, promise and canaries are printed.
    """
    result = innerwatch("bundle", "show", str(folder / "a"))

    assert 0 == result.returncode, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"{folder / 'a'}: demo 1" == lines[0]
    for line in (
        f"digest {fitted.digest}",
        f"weights {identity().weights_sha256}",
        f"hook points {HOOK_POINT}",
        "normalised none",
        f"fitted on {load_dataset(folder / 'fit').sha256}",
        "canaries 4 prompts, 16 tokens",
        f"probe linear max {HOOK_POINT} (1)",
        f"odd mahalanobis max {HOOK_POINT} (10)",
    ):
        assert line in lines
    assert any(line.startswith("at most 5.00% of benign requests") for line in lines)


def test_show_as_json(
    folder: Path, fitted: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    JSON holds the same, and whether a detector needs whole activations.
    """
    status, facts = run_json(capsys, "show", folder / "hand")

    assert 0 == status
    reading = {d["name"]: d["reads_activations"] for d in facts["detectors"]}
    assert (reading["linear"], reading["topk-any"]) == (False, True)
    assert [] == facts["canaries"]
    assert len(facts["detectors"]) == len(facts["calibration"]["thresholds"])
    _, facts = run_json(capsys, "show", folder / "a")
    assert fitted.digest == facts["digest"]
    assert [4] * 4 == [canary["n_tokens"] for canary in facts["canaries"]]


def test_show_says_that_there_are_no_canaries(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A bundle that was made by hand has none, and is shown to.
    """
    _, out, _ = run(capsys, "show", folder / "hand")

    assert "canaries     none\n" in out
    assert "fitted on    unknown" in out


def test_the_same_bundle_has_no_differences(
    folder: Path, fitted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A copy is the same: status 0, and the digest that both have.
    """
    save_bundle(tmp_path / "copy", fitted)

    status, out, _ = run(capsys, "diff", folder / "a", tmp_path / "copy")

    assert (0, f"the same: {fitted.digest}\n") == (status, out)


def changed_weight(bundle: Bundle) -> Bundle:
    probe = bundle.detectors[0]
    assert isinstance(probe, LinearProbe)
    weight = probe.weight.copy()
    weight[3] += np.float32(0.5)
    return remade(
        bundle, detectors=[replace(probe, weight=weight), *bundle.detectors[1:]]
    )


def changed_bias(bundle: Bundle) -> Bundle:
    probe = bundle.detectors[0]
    assert isinstance(probe, LinearProbe)
    return remade(bundle, detectors=[replace(probe, bias=7.0), *bundle.detectors[1:]])


def other_thresholds(bundle: Bundle) -> Bundle:
    return remade(bundle, calibration=fixed_thresholds({"probe": 1.0, "odd": 2.0}))


def other_evidence(bundle: Bundle) -> Bundle:
    evidence = bundle.calibration.evidence
    assert evidence is not None
    changed = replace(bundle.calibration, evidence=replace(evidence, seed=9))
    return remade(bundle, calibration=changed)


def other_canaries(bundle: Bundle) -> Bundle:
    canary = bundle.canaries[1]
    columns = {h: c + np.float32(1) for h, c in canary.columns.items()}
    several = list(bundle.canaries)
    several[1] = replace(canary, columns=columns)
    return remade(bundle, canaries=several)


def negative_zero(bundle: Bundle) -> Bundle:
    canary = bundle.canaries[0]
    norms = {h: n * np.float32(0) for h, n in canary.squared_norms.items()}
    return remade(bundle, canaries=[replace(canary, squared_norms=norms)])


def one_detector(bundle: Bundle) -> Bundle:
    return remade(
        bundle,
        detectors=bundle.detectors[1:],
        calibration=fixed_thresholds({"odd": 2.0}),
        canaries=(),
    )


def other_order(bundle: Bundle) -> Bundle:
    return remade(
        bundle,
        detectors=bundle.detectors[::-1],
        calibration=fixed_thresholds({"odd": 2.0, "probe": 1.0}),
        canaries=(),
    )


DIFFERENCES: list[tuple[Edit, str]] = [
    (lambda b: remade(b, version="2"), "version: 1 -> 2"),
    (
        lambda b: remade(b, identity=replace(b.identity, dtype="bfloat16")),
        "identity.dtype: float32 -> bfloat16",
    ),
    (lambda b: remade(b, fit_sha256="0" * 64), "fit_sha256: "),
    (
        changed_weight,
        "detectors.probe.weight: float32 (12,), max |A - B| 0.5, cosine 0.9",
    ),
    (changed_bias, "detectors.probe.bias: "),
    (other_thresholds, "thresholds.probe[any]: only in B: 1.0"),
    (other_thresholds, "calibration.evidence.alpha: only in A: 0.05"),
    (other_evidence, "calibration.evidence.seed: 0 -> 9"),
    (other_canaries, "canaries[1].blocks.1.hook_resid_post.columns: float32 (4, 11), "),
    (negative_zero, "canaries: 4 -> 1"),
    (one_detector, "detectors.probe: only in A: linear"),
    (other_order, 'detectors: ["probe", "odd"] -> ["odd", "probe"]'),
]


@pytest.mark.parametrize(
    ("edit", "line"), DIFFERENCES, ids=[line for _, line in DIFFERENCES]
)
def test_what_differs_is_named(
    folder: Path,
    fitted: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Edit,
    line: str,
) -> None:
    """
    Each field that differs is a line with both sides; the status is 1 either way round.
    """
    save_bundle(tmp_path / "b", edit(fitted))

    status, out, _ = run(capsys, "diff", folder / "a", tmp_path / "b")
    back, _, _ = run(capsys, "diff", tmp_path / "b", folder / "a")

    assert (1, 1) == (status, back)
    assert any(found.startswith(line) for found in out.splitlines()), out


def test_only_what_differs_is_named(
    folder: Path, fitted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Of a changed direction: how far, and how much it is the same one.
    """
    changed = changed_weight(fitted)
    save_bundle(tmp_path / "b", changed)

    _, facts = run_json(capsys, "diff", folder / "a", tmp_path / "b")

    digest, weight = facts["differences"]
    assert ("digest", "detectors.probe.weight") == (digest["field"], weight["field"])
    ours, theirs = fitted.detectors[0], changed.detectors[0]
    assert isinstance(ours, LinearProbe)
    assert isinstance(theirs, LinearProbe)
    expected = ours.weight @ theirs.weight
    expected /= np.linalg.norm(ours.weight) * np.linalg.norm(theirs.weight)
    assert 0.5 == pytest.approx(weight["max_abs_diff"], rel=1e-5)
    assert float(expected) == pytest.approx(weight["cosine"], rel=1e-5)


def test_thresholds_differ_at_a_length(
    folder: Path, fitted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A boundary that is another for one length is named with it, and the others are not.
    """
    calibration = fitted.calibration
    level = calibration.final_level.copy()
    level[-1, 0] -= 1
    changed = replace(calibration, final_level=level)
    save_bundle(tmp_path / "b", remade(fitted, calibration=changed))

    _, facts = run_json(capsys, "diff", folder / "a", tmp_path / "b")

    found = [d for d in facts["differences"] if d["field"].startswith("thresholds.")]
    (one,) = found
    assert f"thresholds.probe[{calibration.longest[-1]}]" == one["field"]
    assert calibration.final_thresholds()[-1, 0] == one["a"]
    assert changed.final_thresholds()[-1, 0] == one["b"]


def test_a_bundle_that_cannot_be_loaded_is_no_difference(folder: Path) -> None:
    """
    What is no bundle is an error, with the operator's status.
    """
    result = innerwatch("bundle", "diff", str(folder / "a"), str(folder / "nowhere"))

    assert_refused(result, "nowhere", "expected a file")


def test_verify_counts_and_replays(
    folder: Path, fitted: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    New benign requests are flagged as promised; those fitted on hold the canaries.
    """
    arguments = ("--digest", fitted.digest, "--benign", BENIGN)

    status, facts = run_json(
        capsys, "verify", folder / "a", *arguments, "--data", folder / "test"
    )
    rate = facts["rate"]
    assert (0, 200, []) == (status, sum(rate["n_requests"]), facts["problems"])
    assert [rate["low"], rate["high"]] == list(
        clopper_pearson(sum(rate["n_flagged"]), 200)
    )
    assert rate["low"] <= rate["alpha"] == 0.05
    assert (0, False) == (facts["canaries"]["n_found"], facts["is_fitted_on"])

    status, facts = run_json(
        capsys, "verify", folder / "a", *arguments, "--data", folder / "fit"
    )
    assert (0, True) == (status, facts["is_fitted_on"])
    assert (4, 0.0) == (
        facts["canaries"]["n_found"],
        facts["canaries"]["difference"],
    )


def test_verify_is_for_people_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Lines say what was checked, and when the data were used before.
    """
    status, out, _ = run(
        capsys,
        *("verify", folder / "a", "--data", folder / "calibration", "--benign", BENIGN),
    )

    assert 0 == status
    assert "the thresholds were chosen on it" in out
    assert "canaries   none of 4 is in the data set\n" in out
    assert "of benign requests (95 %" in out
    assert "promised 5.00%" in out


def moved(folder: Path, path: Path, by: float) -> Path:
    """The data set that was fitted on, with every activation moved *by*."""
    dataset = load_dataset(folder / "fit")
    with DatasetWriter(path, dataset.identity, [HOOK_POINT], 12) as writer:
        for index, request in enumerate(dataset.requests):
            rows = dataset.rows_of(index)
            writer.append(
                request.request_id,
                {HOOK_POINT: dataset.activations[HOOK_POINT][rows] + np.float32(by)},
                dataset.token_ids[rows],
                dataset.positions[rows],
                request.n_prompt_tokens,
                request.labels,
            )
    return path


def test_verify_finds_another_arithmetic(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Canaries that come out differently, and a broken promise, are said, with status 1.
    """
    data = moved(folder, tmp_path / "moved", 3.0)

    status, out, err = run(
        capsys, "verify", folder / "a", "--data", data, "--benign", BENIGN
    )

    assert 1 == status
    assert "4 of 4 are in the data set; they differ by" in out
    assert 1 == len(err.strip().splitlines()[1:])
    assert "canaries: expected to differ by at most 0.0001, found" in err
    assert "benign requests flagged: expected at most 5.00%, found" in err


def test_a_little_rounding_is_tolerated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Canaries within the tolerance are fine, and their difference is shown.
    """
    data = moved(folder, tmp_path / "moved", 1e-6)

    status, facts = run_json(capsys, "verify", folder / "a", "--data", data)

    assert 0 == status
    assert 0 < facts["canaries"]["difference"] < facts["canaries"]["tolerance"]
    assert "rate" not in facts


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, as far as its identity goes."""
    path = tmp_path / "model"
    path.mkdir()
    config = {"hidden_size": 12, "num_hidden_layers": 11}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "tokenizer.json").write_text("{}")
    return path


def test_verify_knows_the_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The model's own folder is accepted; of a changed one the first field is named.
    """
    save_bundle(tmp_path / "b", build(identity=identity_of(model, "float32")))

    status, out, _ = run(capsys, "verify", tmp_path / "b", "--model", model)
    assert (0, True) == (status, f"model      {model}: the one" in out)

    (model / "tokenizer.json").write_text("{ }")
    (model / "model.safetensors").write_bytes(b"others")
    status, _, err = run(capsys, "verify", tmp_path / "b", "--model", model)
    assert 2 == status
    assert f"{model}: identity.weights_sha256: expected" in err


def test_verify_refuses_what_is_of_something_else(
    folder: Path, fitted: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Another digest, model or hook point is one line that names it.
    """
    other = remade(fitted, identity=identity(n_layers=12))
    save_bundle(tmp_path / "other", other)
    test = folder / "test"
    for arguments, words in (
        ((folder / "a", "--digest", "0" * 64), ["sha256: expected 000"]),
        (
            (tmp_path / "other", "--data", test),
            [str(test), "identity.n_layers: expected 12, found 11"],
        ),
        (
            (folder / "hand", "--data", test),
            ["hook_points: expected ['blocks.1.hook_resid_post', 'blocks.10."],
        ),
        ((folder / "a", "--benign", BENIGN), ["--benign: expected --data"]),
        (
            (folder / "a", "--data", test, "--benign", "behaviour"),
            ["--benign: expected LABEL=VALUE, got 'behaviour'"],
        ),
        (
            (folder / "a", "--data", test, "--benign", "behaviour=no"),
            ["test: expected benign requests, found none"],
        ),
    ):
        status, _, err = run(capsys, "verify", *arguments)
        assert 2 == status
        for word in words:
            assert word in err
        assert 1 == len([line for line in err.splitlines() if "innerwatch:" in line])


@pytest.mark.parametrize(
    ("text", "equals"),
    [
        ("x=none", "none"),
        ("x=true", True),
        ("x=3", 3),
        ('x="3"', "3"),
        ("x=NaN", "NaN"),
        ("x=null", "null"),
        ("x=a=b", "a=b"),
    ],
)
def test_labels_have_kinds(text: str, equals: object) -> None:
    """
    A value is JSON where it is a label's, and else the text as it is.
    """
    from service.commands.verifying import parse_selector

    found = parse_selector(text)

    assert ("x", equals) == (found.label, found.equals)
    assert type(equals) is type(found.equals)
