# The form for what SAELens' folders cannot hold: crosscoders, groupmax, values kept
# below 0, weights in the competition, encoders without a decoder. A folder with
#
#     sae.json           format "innerwatch-sae", version 1, and the record's plain
#                        fields under their names in `SAE`
#     sae.safetensors    the record's arrays under their names in `SAE`, float32
#
# Nothing is folded or scaled any more: what is read is what was written.
"""Our own form of an SAE: sae.json and sae.safetensors."""

import os
from pathlib import Path

import safetensors.numpy

from probes.fields import dump_json
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import read_json

FORMAT = "innerwatch-sae"
_VERSION = 1

_ARRAYS = (
    ("W_enc", ("d_in", "d_sae")),
    ("b_enc", ("d_sae",)),
    ("threshold", ("d_sae",)),
    ("b_gate", ("d_sae",)),
    ("r_mag", ("d_sae",)),
    ("b_mag", ("d_sae",)),
    ("rank_weight", ("d_sae",)),
    ("W_dec", ("d_sae", "d_out")),
    ("b_dec", ("d_out",)),
)


def read_native(path: Path, given: Given) -> SAE:
    """
    Read a folder that `write_native` made.

    Raises:
        ArtifactError: As `load_sae`.
    """
    config_path = path / "sae.json"
    table = read_json(config_path)
    for key, expected in (("format", FORMAT), ("version", _VERSION)):
        found = table.take(key)
        if found != expected:
            table.fail(key, f"expected {expected!r}, found {found!r}")
    places = tuple(table.texts("hook_points"))
    model_name, activation = table.text("model_name"), table.text("activation")
    k = table.integer("k", minimum=1) if table.has("k") else None
    is_raw, is_transcoder = table.truth("is_raw"), table.truth("is_transcoder")
    input_norm, norm_eps = table.text("input_norm"), table.number("norm_eps")
    table.close()
    tensors = open_safetensors(path / "sae.safetensors")
    arrays = {
        name: tensors.floats(name, shape)
        for name, shape in _ARRAYS
        if name in tensors or name in ("W_enc", "b_enc")
    }
    tensors.close()
    return SAE(
        W_enc=arrays["W_enc"],
        b_enc=arrays["b_enc"],
        activation=activation,
        hook_points=given.places(config_path, places),
        model_name=given.model(config_path, model_name),
        threshold=arrays.get("threshold"),
        b_gate=arrays.get("b_gate"),
        r_mag=arrays.get("r_mag"),
        b_mag=arrays.get("b_mag"),
        k=k if given.k is None else given.active(config_path, k),
        is_raw=is_raw,
        rank_weight=arrays.get("rank_weight"),
        input_norm=input_norm,
        norm_eps=norm_eps,
        W_dec=arrays.get("W_dec"),
        b_dec=arrays.get("b_dec"),
        is_transcoder=is_transcoder,
    )


def write_native(folder: Path, sae: SAE) -> None:
    """Write *sae* into the empty *folder*; the same bytes for the same SAE."""
    table: dict[str, object] = {
        "format": FORMAT,
        "version": _VERSION,
        "hook_points": list(sae.hook_points),
        "model_name": sae.model_name,
        "activation": sae.activation,
        "is_raw": sae.is_raw,
        "is_transcoder": sae.is_transcoder,
        "input_norm": sae.input_norm,
        "norm_eps": sae.norm_eps,
    }
    if sae.k is not None:
        table["k"] = sae.k
    arrays = {name: getattr(sae, name) for name, _ in _ARRAYS}
    safetensors.numpy.save_file(
        {name: array for name, array in arrays.items() if array is not None},
        os.fspath(folder / "sae.safetensors"),
    )
    (folder / "sae.json").write_bytes(dump_json(table))
