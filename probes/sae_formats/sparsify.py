# Facts: eai-sparsify 1.3.3, sparse_coder.py, fused_encoder.py, config.py.
"""EleutherAI sparsify: a folder, named as its hook point, with sae.safetensors."""

import re
from pathlib import Path

from probes.arrays import Float32
from probes.fields import Fields
from probes.sae_formats.folding import turned, unshifted
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import Tensors, read_json

# A folder is named as the module: layers.3 or layers.3.mlp.
_MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.[0-9]+(?:\.\w+)*")


def read_sparsify(path: Path, given: Given) -> SAE:
    """
    Read a folder with cfg.json and sae.safetensors.

    ``pre = (x - b_dec) W^T + b``, without b_dec in a transcoder; then the k largest
    of all, or (groupmax) the largest of each of k groups.

    Raises:
        ArtifactError: As `load_sae`; the model has to be given, and the hook point
            where the folder is not named as one.
    """
    cfg = read_json(path / "cfg.json")
    d_in = cfg.integer("d_in", minimum=1)
    activation = cfg.text("activation", "topk")
    if activation not in ("topk", "groupmax"):
        cfg.fail("activation", f"expected 'topk' or 'groupmax', found {activation!r}")
    is_transcoder = _is_true(cfg, "transcode")
    if _is_true(cfg, "signed"):
        cfg.fail("signed", "is refused: features of either sign are not read")
    k = given.active(path / "cfg.json", cfg.integer("k", minimum=1))
    # 0 is not a number of features, but "as the expansion factor says".
    d_sae = cfg.integer("num_latents", 0) or d_in * cfg.integer(
        "expansion_factor", minimum=1
    )
    tensors = open_safetensors(path / "sae.safetensors")
    W_enc, b_enc, W_dec = _weights(tensors, d_in, d_sae)  # noqa: N806
    b_dec = tensors.floats("b_dec", (d_in,))
    tensors.close(["W_skip"])
    if not is_transcoder:
        b_enc = unshifted(b_enc, W_enc, b_dec)
    name = path.resolve().name
    return SAE(
        W_enc=W_enc,
        b_enc=b_enc,
        activation=activation,
        k=k,
        hook_points=given.places(path, (name,) if _MODULE.fullmatch(name) else None),
        model_name=given.model(path / "cfg.json", None),
        W_dec=W_dec,
        b_dec=b_dec,
        is_transcoder=is_transcoder,
    )


def _weights(
    tensors: Tensors, d_in: int, d_sae: int
) -> tuple[Float32, Float32, Float32]:
    """W_enc, b_enc and W_dec, under their names or the older ones."""
    if "W_enc" in tensors:
        return (
            tensors.floats("W_enc", (d_in, d_sae)),
            tensors.floats("b_enc", (d_sae,)),
            turned(tensors.floats("decoder.weight", (d_in, d_sae))),
        )
    return (
        turned(tensors.floats("encoder.weight", (d_sae, d_in))),
        tensors.floats("encoder.bias", (d_sae,)),
        tensors.floats("W_dec", (d_sae, d_in)),
    )


def _is_true(cfg: Fields, key: str) -> bool:
    return cfg.truth(key) if cfg.has(key) else False
