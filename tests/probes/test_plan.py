# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""The recipe that documents every family."""

import re
from pathlib import Path

import pytest

from tests.probes.builders import require_sklearn

require_sklearn()

from probes.fit.plan import load_recipe
from probes.fit.plan_benign import BENIGN_READERS
from probes.fit.plan_labelled import READERS

OTHERS = ("cascade", "mahalanobis", "sae", "sae_novelty")
EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "recipe.toml"


def test_example_recipe_is_one() -> None:
    """
    The documented recipe can be read, and shows every family.
    """
    recipe = load_recipe(EXAMPLE)

    shown = set(re.findall(r'^family = "(\w+)"', EXAMPLE.read_text(), re.MULTILINE))
    assert {*READERS, *BENIGN_READERS, *OTHERS} == shown
    assert len(recipe.detectors) == EXAMPLE.read_text().count("[[detector]]")


# The keys of a commented line go to the detector above it.
COMMENTED = re.compile(r"^# (\w+ = (?!\.\.\.).*)$", re.MULTILINE)


@pytest.mark.parametrize("line", COMMENTED.findall(EXAMPLE.read_text()))
def test_a_commented_key_is_its_default(tmp_path: Path, line: str) -> None:
    """
    Uncommenting a line changes nothing: it is a key that is known, at its default.
    """
    text = EXAMPLE.read_text()
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    as_it_is = load_recipe(path)
    path.write_text(text.replace(f"# {line}", line, 1))

    uncommented = load_recipe(path)

    assert as_it_is == uncommented
