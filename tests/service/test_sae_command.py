"""innerwatch sae: what is understood of a checkpoint, and one form for all."""

import json
from pathlib import Path

import pytest

from probes.sae_formats import load_sae
from tests.contract.sae_checkpoints import HOOK, Case
from tests.contract.sae_folders import FOLDERS
from tests.contract.sae_saelens import SAELENS
from tests.service.builders import assert_refused, innerwatch

CASES = SAELENS | FOLDERS


def test_inspect_prints_what_it_understood(tmp_path: Path) -> None:
    """
    Format, kind, widths, place, model, normalisation and exactness are shown.
    """
    path, _ = CASES["topk"].write(tmp_path / "sae")

    plain = innerwatch("sae", "inspect", str(path))
    machine = innerwatch("sae", "inspect", str(path), "--json")

    assert 0 == plain.returncode, plain.stderr
    for words in ("saelens", "topk", HOOK, "tiny", "full encoder"):
        assert words in plain.stdout
    assert json.loads(machine.stdout) == {
        "path": str(path),
        "format": "saelens",
        "activation": "topk",
        "d_in": 16,
        "d_sae": 64,
        "k": 7,
        "hook_points": [HOOK],
        "model_name": "tiny",
        "input_norm": "none",
        "decoder": "of the input",
        "exact": "full encoder on candidate tokens, from whole activations",
        "is_watchable": True,
    }


@pytest.mark.parametrize(
    ("name", "form", "exact"),
    [
        ("gemma-scope", "saelens", "a feature's own row"),
        ("sparsify-groupmax", "innerwatch", "a feature's own group of 8 rows"),
        ("llamascopium-crosscoder", "innerwatch", "a feature's own row"),
    ],
)
def test_import_writes_a_form_that_says_everything(
    tmp_path: Path, name: str, form: str, exact: str
) -> None:
    """
    What is given on import is in the imported form, which is read without it.
    """
    case: Case = CASES[name]
    path, _ = case.write(tmp_path / "sae")
    given = [
        word
        for key, value in case.facts.items()
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    out = tmp_path / "out"

    result = innerwatch("sae", "import", str(path), "--out", str(out), *given, "--json")

    assert 0 == result.returncode, result.stderr
    facts = json.loads(result.stdout)
    assert (form, exact) == (facts["format"], facts["exact"])
    assert case.hook_points == load_sae(out).hook_points


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    """
    A missing fact, a folder that is there and a stray file are one line each.
    """
    path, _ = CASES["gemma-scope"].write(tmp_path / "sae")
    out = tmp_path / "out"

    assert_refused(innerwatch("sae", "inspect", str(path)), "hook_point: ", "give it")
    assert_refused(
        innerwatch("sae", "import", str(path), "--out", str(path)), "--out: expected"
    )
    assert_refused(innerwatch("sae", "inspect", str(out)), "expected a folder")
    assert_refused(
        innerwatch("sae", "inspect", str(path), "--format", "x"), "format: expected"
    )
    assert not out.exists()
