# Facts: SAELens 6.54, pretrained_sae_loaders.py; the releases' model cards.
"""Qwen-Scope: layer{n}.sae.pt; what else there is to know is in the release's name."""

import re
from pathlib import Path

from probes.sae_formats.folding import turned
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.tensors import Tensors
from probes.sae_formats.torch_file import open_torch

_LAYER = re.compile(r"layer(0|[1-9][0-9]{0,3})\.sae\.pt")
_RELEASE = re.compile(r"SAE-Res-([\w.-]+)-W([0-9]{1,6})K-L0_([0-9]{1,6})")


def read_qwen_scope(path: Path, given: Given) -> SAE:
    """
    Read one layer's file.

    ``pre = x W_enc^T + b_enc``; the k largest are on, with the value that they have.
    Layers count from 0. k and the model are read from the folder's name where that
    is a release's (``SAE-Res-<model>-W<width>K-L0_<k>``), and have to be given else.

    Raises:
        ArtifactError: As `load_sae`; or torch is not installed.
    """
    layer = _LAYER.fullmatch(path.name)
    release = _RELEASE.fullmatch(path.resolve().parent.name)
    tensors = open_torch(path)
    d_sae, d_in = tensors.shape("W_enc", 2)
    if release:
        _check_width(tensors, int(release[2]) * 1024, d_sae)
    sae = SAE(
        W_enc=turned(tensors.floats("W_enc", (d_sae, d_in))),
        b_enc=tensors.floats("b_enc", (d_sae,)),
        activation="topk",
        is_raw=True,
        k=given.active(path, int(release[3]) if release else None),
        hook_points=given.places(path, (f"layers.{layer[1]}",) if layer else None),
        model_name=given.model(path, f"Qwen/{release[1]}" if release else None),
        W_dec=turned(tensors.floats("W_dec", (d_in, d_sae))),
        b_dec=tensors.floats("b_dec", (d_in,)),
    )
    tensors.close()
    return sae


def _check_width(tensors: Tensors, expected: int, d_sae: int) -> None:
    if expected != d_sae:
        tensors.fail(
            "W_enc", f"expected {expected} rows, as its folder is named, found {d_sae}"
        )
