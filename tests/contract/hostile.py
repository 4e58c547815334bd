"""What the tests of hostile checkpoints share."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from probes import ArtifactError
from probes.sae_formats import load_sae
from tests.contract.sae_checkpoints import HOOK

GIVEN: dict[str, Any] = {"hook_point": HOOK, "model_name": "tiny"}


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self._path),)


def assert_refused(path: Path, match: str, **facts: Any) -> None:
    """Refused in one line that names the file."""
    with pytest.raises(ArtifactError, match=match) as caught:
        load_sae(path, **facts)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def npz(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    """Write a zip file of *members*."""
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
