# Facts: openai/sparse_autoencoder, model.py; Gao et al. 2406.04093.
"""OpenAI's SAEs: one .pt file that says neither where it reads nor of which model."""

from collections.abc import Mapping
from pathlib import Path

from probes.sae_formats.folding import turned, unshifted
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.tensors import Tensors
from probes.sae_formats.torch_file import open_torch


def read_openai(path: Path, given: Given) -> SAE:
    """
    Read one file.

    ``pre = (x - pre_bias) W^T + latent_bias``, then ReLU or TopK. Of TopK, and of it
    alone, x is (x - mean) / (std + 1e-5) of its token, as the library decides it.

    Raises:
        ArtifactError: As `load_sae`; or torch is not installed.
    """
    tensors = open_torch(path)
    activation, k, is_raw = _activation(tensors)
    d_sae, d_in = tensors.shape("encoder.weight", 2)
    W_enc = turned(tensors.floats("encoder.weight", (d_sae, d_in)))  # noqa: N806
    W_dec = W_enc.T  # noqa: N806
    if "decoder.weight" in tensors:  # else the two are tied
        W_dec = tensors.floats("decoder.weight", (d_in, d_sae)).T  # noqa: N806
    pre_bias = tensors.floats("pre_bias", (d_in,))
    b_enc = tensors.floats("latent_bias", (d_sae,))
    tensors.close(["stats_*", "activation", "activation_state_dict"])
    is_topk = activation == "topk"
    return SAE(
        W_enc=W_enc,
        b_enc=unshifted(b_enc, W_enc, pre_bias),
        activation=activation,
        k=given.active(path, k) if is_topk else None,
        is_raw=is_raw,
        hook_points=given.places(path, None),
        model_name=given.model(path, None),
        input_norm="layer_norm" if is_topk else "none",
        norm_eps=1e-5 if is_topk else 0.0,
        W_dec=turned(W_dec.T),
        b_dec=pre_bias,
    )


def _activation(tensors: Tensors) -> tuple[str, int | None, bool]:
    """What it is, its k, and whether a value among the k largest may be below 0."""
    name = tensors.plain.get("activation", "ReLU")
    if name == "ReLU":
        return "relu", None, False
    if name != "TopK":
        tensors.fail("activation", f"expected 'ReLU' or 'TopK', found {_word(name)}")
    state = tensors.plain.get("activation_state_dict")
    if not isinstance(state, Mapping):
        tensors.fail("activation_state_dict", f"expected a table, found {_word(state)}")
    k, after = state.get("k"), state.get("postact_fn", "ReLU")
    if isinstance(k, bool) or not isinstance(k, int):
        tensors.fail(
            "activation_state_dict", f"expected an integer k, found {_word(k)}"
        )
    if after not in ("ReLU", "Identity"):
        tensors.fail("activation_state_dict", f"{_word(after)} after TopK is refused")
    return "topk", k, after == "Identity"


def _word(value: object) -> str:
    """*value* for a message; a pickle can hold one that is too long to write out."""
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__
