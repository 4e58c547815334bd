# Facts: Lieberum et al. 2408.05147; SAELens 6.54, pretrained_sae_loaders.py.
"""Gemma Scope 1: params.npz, which says neither where it reads nor of which model."""

from pathlib import Path

from probes.sae_formats.folding import scaled
from probes.sae_formats.given import MLP_INPUTS, Given
from probes.sae_formats.npz_file import open_npz
from probes.sae_formats.record import SAE
from probes.sae_formats.tensors import Tensors

_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read_gemma_scope(path: Path, given: Given) -> SAE:
    """
    Read ``params.npz``, or the folder that it is in.

    ``relu(pre)`` where ``pre = x W_enc + b_enc`` is above the threshold; the decoder's
    bias is not subtracted. At ``hook_embed`` x is divided by sqrt(d_in), as the SAEs
    of the embedding were trained.

    Raises:
        ArtifactError: As `load_sae`; hook point and model have to be given.
    """
    file = path / "params.npz" if path.is_dir() else path
    tensors = open_npz(file)
    keys = _keys(tensors)
    d_in, d_sae = tensors.shape(keys["W_enc"], 2)
    W_enc = tensors.floats(keys["W_enc"], (d_in, d_sae))  # noqa: N806
    W_dec = tensors.floats(keys["W_dec"], (d_sae, "d_out"))  # noqa: N806
    places = given.places(file, None)
    if places == ("hook_embed",):
        W_enc = scaled(W_enc, d_in**-0.5)  # noqa: N806
        W_dec = scaled(W_dec, d_in**0.5)  # noqa: N806
    sae = SAE(
        W_enc=W_enc,
        b_enc=tensors.floats(keys["b_enc"], (d_sae,)),
        activation="jumprelu",
        threshold=tensors.floats(keys["threshold"], (d_sae,)),
        hook_points=places,
        model_name=given.model(file, None),
        W_dec=W_dec,
        b_dec=tensors.floats(keys["b_dec"], (W_dec.shape[1],)),
        is_transcoder=places[0].endswith(MLP_INPUTS),
    )
    tensors.close()
    return sae


def _keys(tensors: Tensors) -> dict[str, str]:
    """What the file calls each of `_KEYS`: the transcoders' are in small letters."""
    names = {name.lower(): name for name in sorted(tensors.names)}
    return {key: names.get(key.lower(), key) for key in _KEYS}
