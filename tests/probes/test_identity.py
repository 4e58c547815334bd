"""The identity of a model folder."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from probes import ArtifactError, identity_of


def write_model(path: Path, config: dict[str, object]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model-2.safetensors").write_bytes(b"two")
    (path / "model-1.safetensors").write_bytes(b"one")
    return path


SIZES: dict[str, object] = {"hidden_size": 64, "num_hidden_layers": 2}


def test_digests_are_what_they_say(tmp_path: Path) -> None:
    """
    Anyone can compute the digests again from the files alone.
    """
    model = write_model(tmp_path / "m", SIZES)

    found = identity_of(model, "bfloat16")

    lines = "".join(
        f"{name} {hashlib.sha256(content).hexdigest()}\n"
        for name, content in [
            ("model-1.safetensors", b"one"),
            ("model-2.safetensors", b"two"),
        ]
    )
    assert hashlib.sha256(lines.encode()).hexdigest() == found.weights_sha256
    config = (model / "config.json").read_bytes()
    assert hashlib.sha256(config).hexdigest() == found.config_sha256
    assert ("", 64, 2) == (found.tokenizer_sha256, found.d_model, found.n_layers)


def test_nested_sizes_are_found(tmp_path: Path) -> None:
    """
    A multimodal model's sizes, under text_config, are found.
    """
    found = identity_of(write_model(tmp_path / "m", {"text_config": SIZES}), "float32")

    assert (64, 2) == (found.d_model, found.n_layers)


def test_sizes_that_are_missing_are_an_error(tmp_path: Path) -> None:
    """
    A configuration without a width is refused, naming the key.
    """
    with pytest.raises(ArtifactError, match="hidden_size"):
        identity_of(write_model(tmp_path / "m", {}), "float32")


def test_no_weights_are_an_error(tmp_path: Path) -> None:
    """
    A folder without weights has no identity.
    """
    (tmp_path / "config.json").write_text(json.dumps(SIZES))

    with pytest.raises(ArtifactError, match="safetensors"):
        identity_of(tmp_path, "float32")


def test_probes_import_is_light() -> None:
    """
    Importing probes, as vLLM's worker does, loads neither torch nor scikit-learn.
    """
    code = "import sys, probes; print(sorted({'sklearn', 'torch'} & set(sys.modules)))"

    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    assert "[]" == result.stdout.strip()
