"""Writes an SAE in one canonical form: SAELens' folder where its kind allows it."""

import os
from pathlib import Path

import numpy as np
import safetensors.numpy

from probes.arrays import Float32
from probes.errors import ArtifactError
from probes.fields import dump_json
from probes.sae_formats.native import write_native
from probes.sae_formats.record import SAE

_ARCHITECTURES = {
    "relu": "standard",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
}
_TRANSCODERS = {"relu": "transcoder", "jumprelu": "jumprelu_transcoder"}
_NORMS = {
    ("none", 0.0): "none",
    ("rms", 0.0): "constant_norm_rescale",
    ("layer_norm", 1e-5): "layer_norm",
}

# Of the configuration's schema: SAELens takes one without it for an older one.
_SCHEMA = "6.0.0"


def canonical_format(sae: SAE) -> str:
    """What `write_sae` writes *sae* as: ``"saelens"`` or ``"innerwatch"``."""
    known = _TRANSCODERS if sae.is_transcoder else _ARCHITECTURES
    is_plain = (
        sae.n_sources == 1
        and sae.activation in known
        and not sae.is_raw
        and sae.rank_weight is None
        and sae.W_dec is not None
        and (sae.input_norm, sae.norm_eps) in _NORMS
        and not (sae.is_transcoder and sae.input_norm != "none")
    )
    return "saelens" if is_plain else "innerwatch"


def write_sae(folder: Path, sae: SAE) -> str:
    """
    Write *sae* to the new *folder*; `load_sae` reads it without being told anything.

    Returns:
        The format. The same SAE gives the same bytes.

    Raises:
        ArtifactError: There is something at *folder*, which was left as it is.
    """
    if folder.exists():
        raise ArtifactError(f"{folder}: expected nothing there, found something")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.mkdir(parents=True)
    try:
        form = canonical_format(sae)
        (_write_saelens if form == "saelens" else write_native)(unfinished, sae)
        unfinished.rename(folder)
    finally:
        if unfinished.is_dir():
            for file in unfinished.iterdir():
                file.unlink()
            unfinished.rmdir()
    return form


def _write_saelens(folder: Path, sae: SAE) -> None:
    known = _TRANSCODERS if sae.is_transcoder else _ARCHITECTURES
    assert sae.W_dec is not None
    d_out = int(sae.W_dec.shape[1])
    config: dict[str, object] = {
        "architecture": known[sae.activation],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,  # folded into b_enc
        "normalize_activations": _NORMS[sae.input_norm, sae.norm_eps],
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _SCHEMA,
            "hook_name": sae.hook_point,
            "model_name": sae.model_name,
        },
    }
    if sae.is_transcoder:
        config["d_out"] = d_out
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    b_dec = np.zeros(d_out, np.float32) if sae.b_dec is None else sae.b_dec
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": b_dec} | _biases(sae)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)},
        os.fspath(folder / "sae_weights.safetensors"),
    )
    (folder / "cfg.json").write_bytes(dump_json(config))


def _biases(sae: SAE) -> dict[str, Float32]:
    """The arrays of a kind; a gated one has no b_enc, which goes into its others."""
    if sae.activation == "gated":
        assert sae.b_gate is not None
        assert sae.r_mag is not None
        assert sae.b_mag is not None
        b_mag = np.exp(sae.r_mag.astype(np.float64)) * sae.b_enc + sae.b_mag
        return {
            "b_gate": sae.b_gate + sae.b_enc,
            "r_mag": sae.r_mag,
            "b_mag": b_mag.astype(np.float32),
        }
    biases = {"b_enc": sae.b_enc}
    if sae.threshold is not None:
        biases["threshold"] = sae.threshold
    return biases
