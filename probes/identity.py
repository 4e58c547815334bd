# vLLM's worker imports this file: the standard library only.
"""What an artifact is bound to: which weights, read how."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from probes.errors import ArtifactError

NORMALISATIONS = ("none",)
"""
How activations are normalised before a detector reads them.

"none": the residual stream as the model has it, which is all that the plugin sends and
that data sets hold. What a detector does to it itself (an SAE's input norm) is the
detector's.
"""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """
    The model that activations were read from.

    Attributes:
        model: As served, a path or a name. For people; digests decide.

        config_sha256: Of config.json.

        weights_sha256: Over the sorted weight files' names and digests.

        tokenizer_sha256: Of tokenizer.json; empty where that is unknown.

        d_model: Width of the residual stream.

        n_layers: Number of decoder blocks.

        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    model: str
    config_sha256: str
    weights_sha256: str
    tokenizer_sha256: str
    d_model: int
    n_layers: int
    dtype: str


def identity_of(model_dir: Path, dtype: str) -> ModelIdentity:
    """
    The identity of the model in the folder *model_dir*, served as *dtype*.

    Reads every weight file once, a megabyte at a time.

    Raises:
        ArtifactError: There is no config.json that gives the width and the number
            of layers, or there are no ``*.safetensors`` files.
    """
    config_path = model_dir / "config.json"
    if not config_path.is_file():
        raise ArtifactError(f"{config_path}: expected a file, found none")
    d_model, n_layers = _sizes_in(config_path)
    tokenizer = model_dir / "tokenizer.json"
    return ModelIdentity(
        model=str(model_dir),
        config_sha256=file_sha256(config_path),
        weights_sha256=_weights_sha256(model_dir),
        tokenizer_sha256=file_sha256(tokenizer) if tokenizer.is_file() else "",
        d_model=d_model,
        n_layers=n_layers,
        dtype=dtype,
    )


def check_same_identity(
    where: str, expected: ModelIdentity, found: ModelIdentity
) -> None:
    """
    Raise `ArtifactError` at the first field in which two identities differ.

    Digests, sizes and dtype decide. The tokenizer's digest is compared where both
    sides know it; the model's name only where neither knows the weights' digest.
    """
    fields = ["config_sha256", "weights_sha256", "d_model", "n_layers", "dtype"]
    if expected.tokenizer_sha256 and found.tokenizer_sha256:
        fields.append("tokenizer_sha256")
    if not expected.weights_sha256 and not found.weights_sha256:
        fields.append("model")
    for field in fields:
        want, got = getattr(expected, field), getattr(found, field)
        if want != got:
            raise ArtifactError(
                f"{where}: identity.{field}: expected {want!r}, found {got!r}"
            )


def file_sha256(path: Path) -> str:
    """SHA-256, hex, of the file at *path*, read a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _weights_sha256(model_dir: Path) -> str:
    files = sorted(model_dir.glob("*.safetensors"), key=lambda file: file.name)
    if not files:
        raise ArtifactError(f"{model_dir}: expected *.safetensors files, found none")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sizes_in(config_path: Path) -> tuple[int, int]:
    try:
        config = json.loads(config_path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{config_path}: expected JSON, found {error}") from error
    sizes = []
    for key in ("hidden_size", "num_hidden_layers"):
        size = _find(config, key)
        if not isinstance(size, int) or size < 1:
            raise ArtifactError(
                f"{config_path}: {key}: expected a positive integer, found {size!r}"
            )
        sizes.append(size)
    return sizes[0], sizes[1]


def _find(config: object, key: str) -> object:
    """The value at *key*, or in ``text_config`` as multimodal models have it."""
    if not isinstance(config, dict):
        return None
    return config[key] if key in config else _find(config.get("text_config"), key)
