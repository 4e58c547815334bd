# Facts: SAELens 6.54, pretrained_sae_loaders.py (gemma_3); circuit-tracer 0.5.
"""Gemma Scope 2: config.json and params.safetensors; also one layer's cross-coder."""

from pathlib import Path

from probes.sae_formats.given import MLP_INPUTS, Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import read_json


def read_gemma_scope_2(path: Path, given: Given) -> SAE:
    """
    Read a folder of Gemma Scope 2, or one file of it.

    JumpReLU of ``x w_enc + b_enc``; no bias is subtracted. Some folders come without
    config.json: then hook point and model have to be given. A cross-layer
    transcoder's decoder, (d_sae, n_layers, d_out), is left out.

    Raises:
        ArtifactError: As `load_sae`.
    """
    file = path / "params.safetensors" if path.is_dir() else path
    reads, writes, model_name = _config(file.with_name("config.json"))
    tensors = open_safetensors(file)
    d_in, d_sae = tensors.shape("w_enc", 2)
    W_dec = None  # noqa: N806
    if len(tensors.declared("w_dec")) == 2:
        W_dec = tensors.floats("w_dec", (d_sae, "d_out"))  # noqa: N806
    places = given.places(file, (reads,) if reads else None)
    is_transcoder = writes not in (None, reads) or places[0].endswith(MLP_INPUTS)
    sae = SAE(
        W_enc=tensors.floats("w_enc", (d_in, d_sae)),
        b_enc=tensors.floats("b_enc", (d_sae,)),
        activation="jumprelu",
        threshold=tensors.floats("threshold", (d_sae,)),
        hook_points=places,
        model_name=given.model(file, model_name),
        W_dec=W_dec,
        b_dec=None if W_dec is None else tensors.floats("b_dec", ("d_out",)),
        is_transcoder=is_transcoder or "affine_skip_connection" in tensors,
    )
    tensors.close(["w_dec", "b_dec", "affine_skip_connection"])
    return sae


def _config(path: Path) -> tuple[str | None, str | None, str | None]:
    """Where it reads and writes, and the model; None where nobody says it."""
    if not path.is_file():
        return None, None, None
    config = read_json(path)
    architecture = config.text("architecture")
    if architecture != "jump_relu":
        config.fail("architecture", f"expected 'jump_relu', found {architecture!r}")
    writes = config.data.get("hf_hook_point_out")
    return (
        config.text("hf_hook_point_in"),
        writes if isinstance(writes, str) else None,
        config.text("model_name"),
    )
