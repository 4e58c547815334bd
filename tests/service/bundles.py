"""A fitted bundle with its data sets, and ``innerwatch bundle`` in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from probes import Bundle, load_dataset, new_bundle, save_bundle
from probes.fit.recipe import fit_bundle
from service.cli import main
from tests.probes.builders import HOOK_POINT, write_dataset
from tests.probes.bundle_builders import build

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


def make_folder(path: Path) -> Path:
    """Data sets, a bundle that was fitted, and one that was made by hand."""
    for seed, name in enumerate(("fit", "calibration", "test"), start=1):
        write_dataset(path / name, seed=seed, n_requests=300)
    (path / "recipe.toml").write_text(RECIPE)
    fit, calibration = (load_dataset(path / name) for name in ("fit", "calibration"))
    save_bundle(path / "a", fit_bundle(path / "recipe.toml", fit, calibration))
    save_bundle(path / "hand", build(canaries=(), fit_sha256=""))
    return path


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
