# ruff: noqa: E402 - fitting is imported once scikit-learn is known to be there.
"""``innerwatch bundle verify``: whether a bundle holds."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.probes.builders import HOOK_POINT, identity, require_sklearn

require_sklearn()

from probes import (
    Bundle,
    DatasetWriter,
    identity_of,
    load_bundle,
    load_dataset,
    save_bundle,
)
from probes.fit.intervals import clopper_pearson
from tests.probes.bundle_builders import build
from tests.service.bundles import BENIGN, make_folder, remade, run, run_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Bundle:
    return load_bundle(folder / "a")


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
