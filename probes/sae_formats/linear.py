# Facts: SAELens 6.54, pretrained_sae_loaders.py (goodfire, deepseek_r1).
"""Two linear layers in one .pt file: Goodfire's SAEs and those of DeepSeek-R1."""

from pathlib import Path

from probes.sae_formats.folding import turned
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.torch_file import open_torch


def read_goodfire(path: Path, given: Given) -> SAE:
    """
    Read one file of Goodfire: ``relu(x W^T + b)``, no bias subtracted.

    Raises:
        ArtifactError: As `load_sae`; or torch is not installed.
    """
    return _read(path, given, "encoder_linear", "decoder_linear")


def read_deepseek_r1(path: Path, given: Given) -> SAE:
    """
    Read one file of the DeepSeek-R1 SAEs: ``relu(x W^T + b)``, no bias subtracted.

    Raises:
        ArtifactError: As `load_sae`; or torch is not installed.
    """
    return _read(path, given, "encoder", "decoder")


def _read(path: Path, given: Given, encoder: str, decoder: str) -> SAE:
    tensors = open_torch(path)
    d_sae, d_in = tensors.shape(f"{encoder}.weight", 2)
    sae = SAE(
        W_enc=turned(tensors.floats(f"{encoder}.weight", (d_sae, d_in))),
        b_enc=tensors.floats(f"{encoder}.bias", (d_sae,)),
        activation="relu",
        hook_points=given.places(path, None),
        model_name=given.model(path, None),
        W_dec=turned(tensors.floats(f"{decoder}.weight", (d_in, d_sae))),
        b_dec=tensors.floats(f"{decoder}.bias", (d_in,)),
    )
    tensors.close()
    return sae
