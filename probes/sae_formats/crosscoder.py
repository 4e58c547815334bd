# Facts: Lindsey et al. 2024, transformer-circuits.pub/2024/crosscoders;
# ckissane/crosscoder-model-diff-replication, crosscoder.py.
"""Crosscoders in one file, with an encoder for each source."""

from pathlib import Path

import numpy as np

from probes.errors import ArtifactError
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.torch_file import open_torch


def read_crosscoder(path: Path, given: Given) -> SAE:
    """
    Read a ``.pt`` or ``.safetensors`` file with W_enc (n_sources, d_model, d_sae).

    ``pre = sum over sources of x_s W_s, + b_enc``, then ReLU; TopK where k is given.
    The sources, in order, have to be given: activations of one token at several
    layers of one model. Those of two models cannot be had in one server.

    Raises:
        ArtifactError: As `load_sae`; torch is needed for .pt, and not installed.
    """
    tensors = (open_safetensors if path.suffix == ".safetensors" else open_torch)(path)
    n, d_model, d_sae = tensors.shape("W_enc", 3)
    places = given.places(path, None)
    if len(places) != n:
        raise ArtifactError(
            f"{path}: hook_point: expected {n}, one a source, found {list(places)}"
        )
    W_enc = tensors.floats("W_enc", (n, d_model, d_sae))  # noqa: N806
    W_dec = tensors.floats("W_dec", (d_sae, n, d_model))  # noqa: N806
    sae = SAE(
        W_enc=W_enc.reshape(n * d_model, d_sae),
        b_enc=tensors.floats("b_enc", (d_sae,)),
        activation="relu" if given.k is None else "topk",
        k=None if given.k is None else given.active(path, None),
        hook_points=places,
        model_name=given.model(path, None),
        W_dec=W_dec.reshape(d_sae, n * d_model),
        b_dec=np.ravel(tensors.floats("b_dec", (n, d_model))),
    )
    tensors.close()
    return sae
