# ruff: noqa: E402 - fitting is imported once scikit-learn is known to be there.
"""``innerwatch bundle show`` and ``diff``: what is in one, what differs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import HOOK_POINT, identity, require_sklearn

require_sklearn()

from probes import (
    Bundle,
    LinearProbe,
    fixed_thresholds,
    load_bundle,
    load_dataset,
    save_bundle,
)
from tests.service.builders import assert_refused, innerwatch
from tests.service.bundles import make_folder, remade, run, run_json

Edit = Callable[[Bundle], Bundle]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Bundle:
    return load_bundle(folder / "a")


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
