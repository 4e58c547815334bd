# Facts: dictionary-learning 0.1.0, dictionary.py, utils.py, training.py, trainers/*.py.
# A "norm_factor" in the configuration changes nothing here: training divides the
# activations by it, and multiplies the biases by it before anything is saved.
"""saprmarks/dictionary_learning: a folder with ae.pt and config.json."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.arrays import Float32
from probes.fields import Fields
from probes.sae_formats.folding import row_norms, scaled, turned, unshifted
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.tensors import Tensors, read_json
from probes.sae_formats.torch_file import open_torch

# What the project's scripts call a place, beside transformers' module names.
_RESID_POST = re.compile(r"resid_post_layer_(0|[1-9][0-9]{0,3})")


@dataclass(slots=True, kw_only=True)
class _Parts:
    """What a class of the library comes to; see `SAE`."""

    W_enc: Float32
    b_enc: Float32
    W_dec: Float32
    b_dec: Float32
    activation: str
    threshold: Float32 | None = None
    b_gate: Float32 | None = None
    r_mag: Float32 | None = None
    b_mag: Float32 | None = None


def read_dictionary_learning(path: Path, given: Given) -> SAE:
    """
    Read a folder with ae.pt and config.json.

    The formula is that of the class that config.json names; of AutoEncoder with the
    decoder's columns at length 1, as its ``from_pretrained`` makes them by default.

    Raises:
        ArtifactError: As `load_sae`; or torch is not installed.
    """
    config_path = path / "config.json"
    trainer = read_json(config_path).table("trainer")
    dict_class = trainer.text("dict_class")
    if dict_class not in _CLASSES:
        trainer.fail(
            "dict_class", f"expected one of {list(_CLASSES)}, found {dict_class!r}"
        )
    tensors = open_torch(path / "ae.pt")
    parts = _CLASSES[dict_class](tensors)
    _check_widths(trainer, parts.W_enc)
    k = None
    if parts.activation == "topk":
        k = given.active(config_path, _k(trainer, tensors))
    # TopK ships a threshold too; its own encode does not use it.
    tensors.close(["k", "threshold"])
    place = _place(trainer)
    return SAE(
        W_enc=parts.W_enc,
        b_enc=parts.b_enc,
        activation=parts.activation,
        hook_points=given.places(config_path, (place,) if place else None),
        model_name=given.model(config_path, trainer.text("lm_name", "")),
        threshold=parts.threshold,
        b_gate=parts.b_gate,
        r_mag=parts.r_mag,
        b_mag=parts.b_mag,
        k=k,
        W_dec=parts.W_dec,
        b_dec=parts.b_dec,
    )


def _auto_encoder(tensors: Tensors) -> _Parts:
    parts = _linear(tensors, "bias")
    norms = row_norms(parts.W_dec)
    if not norms.all():
        tensors.fail("decoder.weight", "expected columns that are not 0")
    if not np.allclose(norms, 1):
        parts.W_enc = scaled(parts.W_enc, norms)
        parts.b_enc = scaled(parts.b_enc, norms)
        parts.W_dec = scaled(parts.W_dec, 1 / norms[:, None])
    parts.b_enc = unshifted(parts.b_enc, parts.W_enc, parts.b_dec)
    return parts


def _auto_encoder_new(tensors: Tensors) -> _Parts:
    return _linear(tensors, "decoder.bias")


def _gated(tensors: Tensors) -> _Parts:
    parts = _linear(tensors, "decoder_bias", has_bias=False)
    d_sae = parts.W_enc.shape[1]
    parts.activation = "gated"
    parts.b_enc = unshifted(parts.b_enc, parts.W_enc, parts.b_dec)
    parts.b_gate = tensors.floats("gate_bias", (d_sae,))
    parts.r_mag = tensors.floats("r_mag", (d_sae,))
    parts.b_mag = tensors.floats("mag_bias", (d_sae,))
    return parts


def _jump_relu(tensors: Tensors) -> _Parts:
    parts = _matrices(tensors)
    parts.threshold = tensors.floats("threshold", parts.b_enc.shape)
    parts.activation = "jumprelu"
    return parts


def _top_k(tensors: Tensors) -> _Parts:
    parts = _linear(tensors, "b_dec")
    parts.activation = "topk"
    parts.b_enc = unshifted(parts.b_enc, parts.W_enc, parts.b_dec)
    return parts


def _batch_top_k(tensors: Tensors) -> _Parts:
    return _thresholded(tensors, _linear(tensors, "b_dec"))


def _matryoshka(tensors: Tensors) -> _Parts:
    parts = _thresholded(tensors, _matrices(tensors))
    d_sae = len(parts.b_enc)
    sizes = tensors.integers("group_sizes", ("n_groups",))
    if sum(sizes) != d_sae or min(sizes) < 1:
        tensors.fail("group_sizes", f"expected sizes that sum to {d_sae}")
    return parts


_CLASSES: dict[str, Callable[[Tensors], _Parts]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


def _linear(tensors: Tensors, bias: str, *, has_bias: bool = True) -> _Parts:
    """Two linear layers; *bias* is the name of the decoder's."""
    d_sae, d_in = tensors.shape("encoder.weight", 2)
    b_enc = np.zeros(d_sae, np.float32)
    if has_bias:
        b_enc = tensors.floats("encoder.bias", (d_sae,))
    return _Parts(
        W_enc=turned(tensors.floats("encoder.weight", (d_sae, d_in))),
        b_enc=b_enc,
        W_dec=turned(tensors.floats("decoder.weight", (d_in, d_sae))),
        b_dec=tensors.floats(bias, (d_in,)),
        activation="relu",
    )


def _matrices(tensors: Tensors) -> _Parts:
    d_in, d_sae = tensors.shape("W_enc", 2)
    return _Parts(
        W_enc=tensors.floats("W_enc", (d_in, d_sae)),
        b_enc=tensors.floats("b_enc", (d_sae,)),
        W_dec=tensors.floats("W_dec", (d_sae, d_in)),
        b_dec=tensors.floats("b_dec", (d_in,)),
        activation="relu",
    )


def _thresholded(tensors: Tensors, parts: _Parts) -> _Parts:
    """At inference one threshold stands for the top k of a batch."""
    threshold = float(tensors.floats("threshold", ()))
    if threshold < 0:
        tensors.fail(
            "threshold",
            f"expected one of at least 0, found {threshold}: training "
            f"never set it, and without it far too many features are on",
        )
    parts.activation = "jumprelu"
    parts.b_enc = unshifted(parts.b_enc, parts.W_enc, parts.b_dec)
    parts.threshold = np.full(parts.b_enc.shape, threshold, np.float32)
    return parts


def _check_widths(trainer: Fields, weight: Float32) -> None:
    for key, size in zip(("activation_dim", "dict_size"), weight.shape, strict=True):
        if trainer.has(key) and trainer.integer(key) != size:
            trainer.fail(key, f"expected {size}, as in ae.pt, found another")


def _k(trainer: Fields, tensors: Tensors) -> int:
    k = trainer.integer("k", minimum=1)
    if "k" in tensors and tensors.integers("k", ()) != [k]:
        trainer.fail("k", f"expected the one in ae.pt, found {k}")
    return k


def _place(trainer: Fields) -> str | None:
    """Where it reads; a layer alone does not say which stream of that layer."""
    name = trainer.data.get("submodule_name")
    if not isinstance(name, str) or not name:
        return None
    match = _RESID_POST.fullmatch(name)
    if match is None:
        return name
    layer = trainer.data.get("layer", int(match[1]))
    if layer != int(match[1]):
        trainer.fail("layer", f"expected {match[1]}, as in {name!r}, found {layer!r}")
    return f"blocks.{match[1]}.hook_resid_post"
