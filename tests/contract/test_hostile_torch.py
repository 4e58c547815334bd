"""Checkpoints of torch.save that lie, or want to run code."""

import pickle
import sys
import zipfile
from pathlib import Path

import pytest

from tests.contract.hostile import GIVEN, Evil, assert_refused, npz
from tests.contract.sae_files import FILES


@pytest.mark.parametrize("kind", ["bare", "zip"])
def test_a_pickle_runs_nothing(tmp_path: Path, kind: str) -> None:
    """
    A .pt file that would run code is refused, and nothing of it runs.
    """
    path, made = tmp_path / "sae.pt", tmp_path / "made"
    content = {"W_enc": Evil(made)}
    if kind == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch = pytest.importorskip("torch", reason="pip install torch")
        torch.save(content, path)

    assert_refused(path, "expected")
    assert not made.exists()


def test_a_torch_file_without_torch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where torch is not installed, the line names it.
    """
    path = tmp_path / "sae.pt"
    npz(path, {"archive/data.pkl": b""})
    monkeypatch.setitem(sys.modules, "torch", None)

    assert_refused(path, "pip install torch")


def test_an_unknown_value_of_a_torch_file_is_refused(tmp_path: Path) -> None:
    """
    What stands beside the tensors may change their meaning, too.
    """
    path, _ = FILES["goodfire"].write(tmp_path / "sae")
    torch = pytest.importorskip("torch", reason="pip install torch")
    torch.save(torch.load(path, weights_only=True) | {"tied": True}, path)

    assert_refused(path, "tied: expected no such value", **GIVEN)


def test_a_packed_torch_file_is_refused(tmp_path: Path) -> None:
    """
    torch.save packs nothing: what is packed could grow without bound.
    """
    path = tmp_path / "sae.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000)

    assert_refused(path, "expected stored members")


def test_torch_weights_that_repeat_one_number_are_refused(tmp_path: Path) -> None:
    """
    A tensor that declares more than its storage holds is refused.
    """
    torch = pytest.importorskip("torch", reason="pip install torch")
    path = tmp_path / "sae.pt"
    torch.save({"W_enc": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)

    assert_refused(path, "W_enc: expected 4 bytes of numbers")
