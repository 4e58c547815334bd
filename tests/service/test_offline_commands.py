"""collect and fit: one line for the operator's faults, before any work is done."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from service.config import load_config
from tests.probes.builders import HOOK_POINT, require_sklearn, write_dataset
from tests.service.builders import (
    ROOT,
    assert_refused,
    innerwatch,
)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b'{"id": "a", "prompt": "\xff"}', (), ("prompts.jsonl", "UTF-8")),
        (b"{", (), ("prompts.jsonl:1", "expected JSON")),
        (b"[" * 100_000, (), ("prompts.jsonl:1", "expected JSON")),
        (b'{"id": "a", "prompt": "", "x": NaN}', (), ("prompts.jsonl:1", "x:", "nan")),
        (b'{"prompt": "x"}', (), ("prompts.jsonl:1", "id:")),
        (b'{"id": "a"}', (), ("prompts.jsonl:1", "messages:")),
        (b"", (), ("prompts.jsonl", "found none")),
        (b'{"id": "a", "prompt": ""}\n' * 2, (), ("prompts.jsonl", "each id once")),
        (None, (), ("prompts.jsonl",)),
        (b"", ("--hook-point", "foo"), ("--hook-point", "'foo'")),
        (b"", ("--hook-point", HOOK_POINT), ("--hook-point", "different")),
        (b"", ("--concurrency", "0"), ("--concurrency", "got 0")),
        (b"", ("--max-tokens", "-1"), ("--max-tokens", "got -1")),
        (b'{"id": "a", "prompt": "x"}', ("--leave-out", "y"), ("--leave-out", "'y'")),
    ],
)
def test_collect_does_not_start(
    tmp_path: Path,
    content: bytes | None,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    """
    What is wrong with prompts or options is said before vLLM starts.
    """
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    if content is not None:
        prompts.write_bytes(content)

    result = innerwatch(
        *("collect", "--model", "nowhere", "--prompts", str(prompts)),
        *("--out", str(out), "--hook-point", HOOK_POINT, *options),
    )

    assert_refused(result, *words)
    assert not out.exists()


def test_collect_does_not_overwrite(tmp_path: Path) -> None:
    """
    A finished data set is left alone.
    """
    write_dataset(tmp_path / "out", n_requests=1)

    result = innerwatch(
        *("collect", "--model", "nowhere", "--prompts", "nowhere"),
        *("--out", str(tmp_path / "out"), "--hook-point", HOOK_POINT),
    )

    assert_refused(result, "out", "found one")


RECIPE = f"""
name = "odd"
version = "1"
[calibration]
alpha = 0.1
[[detector]]
name = "odd"
family = "mahalanobis"
hook_point = "{HOOK_POINT}"
benign = {{ label = "behaviour", equals = "none" }}
"""


@pytest.fixture
def fittable(tmp_path: Path) -> Path:
    """A folder with a recipe and two data sets."""
    write_dataset(tmp_path / "fit", seed=1)
    write_dataset(tmp_path / "calibration", seed=2)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def fit_command(folder: Path) -> list[str]:
    """Arguments of ``fit`` on what is in *folder*."""
    return [
        *("fit", "--recipe", str(folder / "recipe.toml"), "--fit", str(folder / "fit")),
        *("--calibration", str(folder / "calibration"), "--out", str(folder / "out")),
    ]


def bundle_exists(folder: Path) -> tuple[str, ...]:
    (folder / "out").mkdir()
    # Said before the data sets are read, let alone fitted on.
    (folder / "fit" / "dataset.json").unlink()
    return ("--out", str(folder / "out"))


def altered_activations(folder: Path) -> tuple[str, ...]:
    path = folder / "fit" / f"{HOOK_POINT}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return (path.name, "sha256")


def altered_calibration(folder: Path) -> tuple[str, ...]:
    path = folder / "calibration" / "requests.jsonl"
    path.write_text(path.read_text().replace("backdoor", "none"))
    return (path.name, "sha256")


def unfinished_data_set(folder: Path) -> tuple[str, ...]:
    (folder / "fit" / "dataset.json").unlink()
    return ("dataset.json", "finished")


def the_same_data_set(folder: Path) -> tuple[str, ...]:
    shutil.rmtree(folder / "calibration")
    shutil.copytree(folder / "fit", folder / "calibration")
    return ("same data set",)


def no_recipe(folder: Path) -> tuple[str, ...]:
    (folder / "recipe.toml").unlink()
    return ("recipe.toml",)


def recipe_is_not_text(folder: Path) -> tuple[str, ...]:
    (folder / "recipe.toml").write_bytes(b"\xff")
    return ("recipe.toml", "expected TOML")


def impossible_rank(folder: Path) -> tuple[str, ...]:
    (folder / "recipe.toml").write_text(f"{RECIPE}rank = 99")
    return ("recipe.toml: detector[0]", "rank")


@pytest.mark.parametrize(
    "spoil",
    [
        bundle_exists,
        altered_activations,
        altered_calibration,
        unfinished_data_set,
        the_same_data_set,
        no_recipe,
        recipe_is_not_text,
        impossible_rank,
    ],
)
def test_fit_refuses(fittable: Path, spoil: Callable[[Path], tuple[str, ...]]) -> None:
    """
    What is wrong with the recipe, the data sets or the output is one line.
    """
    require_sklearn()
    words = spoil(fittable)

    assert_refused(innerwatch(*fit_command(fittable)), *words)


def test_fit_prints_what_monitor_toml_needs(fittable: Path) -> None:
    """
    The printed section, pasted, is a configuration that takes this bundle only.
    """
    require_sklearn()

    result = innerwatch(*fit_command(fittable))

    assert 0 == result.returncode, result.stderr
    _, _, section = result.stdout.partition("[detectors]")
    (fittable / "monitor.toml").write_text(f"[detectors]{section}")
    config = load_config(fittable / "monitor.toml")
    digest = hashlib.sha256((fittable / "out" / "bundle.json").read_bytes())
    assert digest.hexdigest() == config.bundle_digest
    assert (fittable / "out").resolve() == config.bundle_path


def test_fit_shows_how_much_is_done(fittable: Path) -> None:
    """
    On a terminal the bar counts the steps done of all.
    """
    require_sklearn()
    terminal, screen = os.openpty()
    termios.tcsetwinsize(screen, (24, 80))

    subprocess.run(
        [sys.executable, "-m", "service.cli", *fit_command(fittable)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=screen,
        check=True,
    )
    os.close(screen)
    shown = b""
    with contextlib.suppress(OSError):  # EIO is a terminal's end
        while more := os.read(terminal, 1 << 16):
            shown += more
    os.close(terminal)

    for part in (b"0/2", b"1/2", b"2/2"):
        assert part in shown
