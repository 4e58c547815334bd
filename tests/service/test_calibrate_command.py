# ruff: noqa: E402 - fitting is imported once scikit-learn is known to be there.
"""``innerwatch calibrate``: new boundaries, the same detectors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.probes.builders import (
    HOOK_POINT,
    LATER_HOOK_POINT,
    linear,
    require_sklearn,
    write_dataset,
)

require_sklearn()

from probes import (
    fixed_thresholds,
    load_bundle,
    load_dataset,
    new_bundle,
    save_bundle,
)
from probes.bundle_diff import diff_bundles
from probes.fit.recipe import fit_bundle
from service.cli import main
from service.config import load_config
from tests.probes.builders import identity
from tests.service.builders import assert_refused, innerwatch

CALIBRATION = """
[calibration]
alpha = 0.1
benign = { label = "behaviour", equals = "none" }
"""
RECIPE = f"""
name = "demo"
version = "1"
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
{CALIBRATION}
"""
FILES = ("bundle.json", "canaries.json", "detectors.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three data sets, a recipe, and the bundle that it fits."""
    path = tmp_path_factory.mktemp("calibrate")
    for seed, name in enumerate(("fit", "calibration", "later"), start=1):
        write_dataset(path / name, seed=seed, n_requests=150)
    (path / "recipe.toml").write_text(RECIPE)
    (path / "calibration.toml").write_text(CALIBRATION)
    fit, calibration = (load_dataset(path / name) for name in ("fit", "calibration"))
    save_bundle(path / "bundle", fit_bundle(path / "recipe.toml", fit, calibration))
    return path


def arguments(folder: Path, out: Path, **changes: object) -> list[str]:
    """A command line that calibrates the bundle in *folder* on later requests."""
    options: dict[str, object] = {
        "bundle": folder / "bundle",
        "calibration": folder / "later",
        "recipe": folder / "calibration.toml",
        "version": "2",
        "out": out,
    }
    given = [(f"--{key}", str(value)) for key, value in (options | changes).items()]
    return ["calibrate", *(word for pair in given for word in pair)]


@pytest.mark.parametrize("recipe", ["recipe.toml", "calibration.toml"])
def test_it_is_what_fitting_would_have_made(
    made: Path, tmp_path: Path, recipe: str
) -> None:
    """
    The same detectors calibrated on the same requests are the same bundle, to the byte.
    """
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('"1"', '"2"'))
    fit, later = (load_dataset(made / name) for name in ("fit", "later"))
    fitted = fit_bundle(tmp_path / "recipe.toml", fit, later)
    save_bundle(tmp_path / "fitted", fitted)

    status = main(arguments(made, tmp_path / "out", recipe=made / recipe))

    assert 0 == status
    for name in FILES:
        expected = (tmp_path / "fitted" / name).read_bytes()
        assert expected == (tmp_path / "out" / name).read_bytes()


def test_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    """
    The same bundle and requests give the same bytes.
    """
    for name in ("a", "b"):
        assert 0 == main(arguments(made, tmp_path / name))

    for name in FILES:
        first, second = ((tmp_path / x / name).read_bytes() for x in "ab")
        assert first == second


def test_only_the_calibration_is_new(made: Path, tmp_path: Path) -> None:
    """
    Detectors and canaries stay; version, boundaries and what they rest on change.
    """
    assert 0 == main(arguments(made, tmp_path / "out"))

    old, new = load_bundle(made / "bundle"), load_bundle(tmp_path / "out")
    changed = {d.field.split(".")[0] for d in diff_bundles(old, new)}
    assert {"digest", "version", "thresholds", "calibration"} == changed
    assert new.calibration.evidence is not None
    assert (
        load_dataset(made / "later").sha256 == new.calibration.evidence.dataset_sha256
    )


def test_it_prints_what_monitor_toml_needs(made: Path, tmp_path: Path) -> None:
    """
    The printed section, pasted, is a configuration that takes this bundle only.
    """
    result = innerwatch(*arguments(made, tmp_path / "out"))

    assert 0 == result.returncode, result.stderr
    assert "calibrating ...\n" == result.stderr
    _, _, section = result.stdout.partition("[detectors]")
    (tmp_path / "monitor.toml").write_text(f"[detectors]{section}")
    config = load_config(tmp_path / "monitor.toml")
    assert load_bundle(tmp_path / "out").digest == config.bundle_digest


def test_json(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    JSON has the digest and the promise, and nothing else is printed.
    """
    status = main([*arguments(made, tmp_path / "out"), "--json"])

    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert (0, "") == (status, printed.err)
    assert load_bundle(tmp_path / "out").digest == facts["digest"]
    assert ("2", 0.1) == (facts["version"], facts["calibration"]["evidence"]["alpha"])


def test_a_bundle_made_by_hand_is_given_canaries(made: Path, tmp_path: Path) -> None:
    """
    Thresholds set by hand become a promise, and canaries are chosen where none were.
    """
    by_hand = new_bundle(
        name="hand",
        version="1",
        identity=identity(),
        detectors=[linear()],
        calibration=fixed_thresholds({"linear": 3.0}),
    )
    save_bundle(tmp_path / "hand", by_hand)

    status = main(arguments(made, tmp_path / "out", bundle=tmp_path / "hand"))

    new = load_bundle(tmp_path / "out")
    assert (0, 4) == (status, len(new.canaries))
    assert new.calibration.evidence is not None


def other_model(folder: Path, options: dict[str, object]) -> list[str]:
    file = folder / "later" / "dataset.json"
    data: dict[str, Any] = json.loads(file.read_bytes())
    data["identity"]["dtype"] = "bfloat16"
    file.write_text(json.dumps(data))
    return ["later: identity.dtype: expected 'float32', found 'bfloat16'"]


def other_normalisation(folder: Path, options: dict[str, object]) -> list[str]:
    file = folder / "later" / "dataset.json"
    file.write_text(file.read_text().replace('"none"', '"layer_norm"'))
    return ["normalisation: expected one of ['none'], found 'layer_norm'"]


def other_hook_point(folder: Path, options: dict[str, object]) -> list[str]:
    by_hand = new_bundle(
        name="hand",
        version="1",
        identity=identity(),
        detectors=[linear("linear", LATER_HOOK_POINT)],
        calibration=fixed_thresholds({"linear": 3.0}),
    )
    save_bundle(folder / "hand", by_hand)
    options["bundle"] = folder / "hand"
    return [f"hook_points: expected ['{LATER_HOOK_POINT}']"]


def what_was_fitted_on(folder: Path, options: dict[str, object]) -> list[str]:
    options["calibration"] = folder / "fit"
    return ["'demo' was fitted on, found the same data set"]


def no_benign(folder: Path, options: dict[str, object]) -> list[str]:
    (folder / "calibration.toml").write_text("[calibration]\nalpha = 0.1")
    return ["calibration.toml: calibration.benign: expected a table"]


def no_calibration(folder: Path, options: dict[str, object]) -> list[str]:
    (folder / "calibration.toml").write_text("")
    return ["calibration.toml: calibration: expected a table"]


def unknown_key(folder: Path, options: dict[str, object]) -> list[str]:
    (folder / "calibration.toml").write_text(f"more = 1\n{CALIBRATION}")
    return ["calibration.toml: more: unknown key"]


def unknown_gate(folder: Path, options: dict[str, object]) -> list[str]:
    (folder / "calibration.toml").write_text(f'{CALIBRATION}gates = ["x"]')
    return ["calibration.toml: calibration.gates: expected some of ['probe', 'odd']"]


def too_few(folder: Path, options: dict[str, object]) -> list[str]:
    text = CALIBRATION.replace("0.1", "0.001")
    (folder / "calibration.toml").write_text(text)
    return ["calibration.toml: calibration: alpha 0.001", "at least 1998 benign"]


def the_same_version(folder: Path, options: dict[str, object]) -> list[str]:
    options["version"] = "1"
    return ["--version: expected another than that of", "got '1'"]


def out_exists(folder: Path, options: dict[str, object]) -> list[str]:
    options["out"] = folder / "bundle"
    return ["--out: expected no such folder"]


def altered(folder: Path, options: dict[str, object]) -> list[str]:
    file = folder / "later" / f"{HOOK_POINT}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return [f"{HOOK_POINT}.npy: sha256"]


@pytest.mark.parametrize(
    "spoil",
    [
        other_model,
        other_normalisation,
        other_hook_point,
        what_was_fitted_on,
        no_benign,
        no_calibration,
        unknown_key,
        unknown_gate,
        too_few,
        the_same_version,
        out_exists,
        altered,
    ],
)
def test_calibrate_refuses(
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path, dict[str, object]], list[str]],
) -> None:
    """
    What is wrong with the bundle, data set or recipe is one line; nothing is written.
    """
    folder, options = tmp_path / "copy", dict[str, object]()
    for source in made.rglob("*"):
        if source.is_file():
            target = folder / source.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    words = spoil(folder, options)
    before = sorted(tmp_path.rglob("*"))

    out = options.pop("out", tmp_path / "out")
    assert isinstance(out, Path)
    status = main(arguments(folder, out, **options))

    err = capsys.readouterr().err
    assert 2 == status
    (line,) = [line for line in err.splitlines() if line.startswith("innerwatch: ")]
    for word in words:
        assert word in line
    assert before == sorted(tmp_path.rglob("*"))


def test_a_bundle_is_needed(made: Path, tmp_path: Path) -> None:
    """
    What is no bundle is named.
    """
    changed = arguments(made, tmp_path / "out", bundle=tmp_path / "nowhere")

    assert_refused(innerwatch(*changed), "nowhere", "expected a file")
