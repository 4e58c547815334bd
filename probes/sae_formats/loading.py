# A format is one line in `FORMATS`: its reader, and what tells it from the others. Two
# that both fit are an error and not a guess: files with equal keys differ in formula.
"""Which format a checkpoint has, and the SAE in it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.errors import ArtifactError
from probes.sae_formats.circuit_tracer import read_circuit_tracer, read_cross_layer
from probes.sae_formats.crosscoder import read_crosscoder
from probes.sae_formats.dictionary_learning import read_dictionary_learning
from probes.sae_formats.gemma_scope import read_gemma_scope
from probes.sae_formats.gemma_scope_2 import read_gemma_scope_2
from probes.sae_formats.given import Given
from probes.sae_formats.linear import read_deepseek_r1, read_goodfire
from probes.sae_formats.llama_scope import read_llama_scope
from probes.sae_formats.llamascopium import read_llamascopium
from probes.sae_formats.look import Look, look_at
from probes.sae_formats.native import read_native
from probes.sae_formats.openai import read_openai
from probes.sae_formats.qwen_scope import read_qwen_scope
from probes.sae_formats.record import SAE
from probes.sae_formats.saelens import read_saelens
from probes.sae_formats.sparsify import read_sparsify


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    read: Callable[[Path, Given], SAE]
    fits: Callable[[Look], bool]


def _is_saelens(look: Look) -> bool:
    return look.has("cfg.json", "sae_weights.safetensors")


def _is_gemma_scope(look: Look) -> bool:
    names = {name.lower() for name in look.shapes}
    return "params.npz" in look.files or (
        look.name.endswith(".npz") and {"w_enc", "b_enc", "threshold"} <= names
    )


def _is_gemma_scope_2(look: Look) -> bool:
    return look.has("params.safetensors") or (
        look.name.endswith(".safetensors")
        and look.has_tensors("w_enc", "w_dec", "b_enc", "threshold")
    )


def _is_sparsify(look: Look) -> bool:
    return look.has("cfg.json", "sae.safetensors")


def _is_dictionary_learning(look: Look) -> bool:
    return look.has("ae.pt") and "trainer" in look.config("config.json")


def _is_llama_scope(look: Look) -> bool:
    return look.has("hyperparams.json")


def _is_llamascopium(look: Look) -> bool:
    return look.has("config.json", "sae_weights.safetensors")


def _is_qwen_scope(look: Look) -> bool:
    return bool(re.fullmatch(r"layer\d+\.sae\.pt", look.name)) and _is_flat(look)


def _is_openai(look: Look) -> bool:
    return look.has_tensors("pre_bias", "latent_bias", "encoder.weight")


def _is_goodfire(look: Look) -> bool:
    return look.has_tensors("encoder_linear.weight", "decoder_linear.weight")


def _is_deepseek_r1(look: Look) -> bool:
    names = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
    # dictionary_learning's ae.pt may have the same keys; config.json tells its class.
    return look.shapes.keys() == names and look.name != "ae.pt"


def _is_circuit_tracer(look: Look) -> bool:
    return bool(re.fullmatch(r"layer_\d+\.safetensors", look.name)) and _is_flat(look)


def _is_cross_layer(look: Look) -> bool:
    return bool(re.fullmatch(r"W_enc_\d+\.safetensors", look.name))


def _is_crosscoder(look: Look) -> bool:
    return len(look.shapes.get("W_enc", ())) == 3


def _is_native(look: Look) -> bool:
    return look.has("sae.json", "sae.safetensors")


def _is_flat(look: Look) -> bool:
    return look.has_tensors("W_enc", "W_dec", "b_enc", "b_dec") and not (
        _is_crosscoder(look)
    )


FORMATS: dict[str, _Format] = {
    "innerwatch": _Format(read=read_native, fits=_is_native),
    "saelens": _Format(read=read_saelens, fits=_is_saelens),
    "gemma_scope": _Format(read=read_gemma_scope, fits=_is_gemma_scope),
    "gemma_scope_2": _Format(read=read_gemma_scope_2, fits=_is_gemma_scope_2),
    "sparsify": _Format(read=read_sparsify, fits=_is_sparsify),
    "dictionary_learning": _Format(
        read=read_dictionary_learning, fits=_is_dictionary_learning
    ),
    "llama_scope": _Format(read=read_llama_scope, fits=_is_llama_scope),
    "llamascopium": _Format(read=read_llamascopium, fits=_is_llamascopium),
    "qwen_scope": _Format(read=read_qwen_scope, fits=_is_qwen_scope),
    "openai": _Format(read=read_openai, fits=_is_openai),
    "goodfire": _Format(read=read_goodfire, fits=_is_goodfire),
    "deepseek_r1": _Format(read=read_deepseek_r1, fits=_is_deepseek_r1),
    "circuit_tracer": _Format(read=read_circuit_tracer, fits=_is_circuit_tracer),
    "cross_layer": _Format(read=read_cross_layer, fits=_is_cross_layer),
    "crosscoder": _Format(read=read_crosscoder, fits=_is_crosscoder),
}
"""By name, as recipes and commands give it."""


# Their configuration, their weights, and why they are not read.
_REFUSED = {
    ("conf.yaml", "latest_ckpt.safetensors"): (
        "a temporal SAE attends to earlier tokens, and one token's activation does "
        "not give its features"
    ),
}


def format_of(path: Path) -> str:
    """
    The format of the checkpoint at *path*, told from its files.

    Raises:
        ArtifactError: It fits no format, or more than one; the line names them.
    """
    look = look_at(path)
    for (config, weights), reason in _REFUSED.items():
        if look.has(config, weights):
            raise ArtifactError(f"{path}: {weights}: is refused: {reason}")
    names = [name for name, known in FORMATS.items() if known.fits(look)]
    if len(names) != 1:
        found = sorted(look.files or look.shapes)[:8]
        fits = f"fits {' and '.join(names)}" if names else "fits none"
        raise ArtifactError(
            f"{path}: format: {fits} of {list(FORMATS)} by what it holds, {found}; "
            f"give format where you know it"
        )
    return names[0]


def load_sae(
    path: Path,
    *,
    format: str | None = None,
    hook_point: str | None = None,
    hook_points: tuple[str, ...] | None = None,
    model_name: str | None = None,
    scale: float | None = None,
    k: int | None = None,
) -> SAE:
    """
    Read the checkpoint at *path*.

    What the files do not say has to be given; what they say and is given has to agree.

    Args:
        path: A folder or a file, as its library writes or publishes it.

        format: One of `FORMATS`; told from the files where it is None.

        hook_point: Where the SAE reads, such as ``"blocks.15.hook_resid_post"``.

        hook_points: Where a crosscoder reads, one a source, in its order.

        model_name: The model that it was trained on.

        scale: What activations are multiplied by before the encoder, where the SAE
            was trained on scaled ones and the scale is not in the files.

        k: How many features of a TopK SAE are on, where the files do not say it.

    Raises:
        ArtifactError: The format is unknown or ambiguous, a file is missing, hostile
            or malformed, the SAE is of a kind that cannot be evaluated, or a fact is
            missing or contradicted. One line, naming file and field.

        ValueError: Both *hook_point* and *hook_points* are given.
    """
    if hook_point is not None and hook_points is not None:
        raise ValueError("load_sae: hook_point, hook_points: expected one of them")
    if hook_point is not None:
        hook_points = (hook_point,)
    name = format_of(path) if format is None else format
    if name not in FORMATS:
        raise ArtifactError(
            f"{path}: format: expected one of {list(FORMATS)}, got {name!r}"
        )
    given = Given(hook_points=hook_points, model_name=model_name, scale=scale, k=k)
    try:
        # What overflows becomes an infinity, and the record refuses it.
        with np.errstate(over="ignore", invalid="ignore"):
            sae = FORMATS[name].read(path, given)
    except ArtifactError:
        raise
    except (ValueError, OverflowError) as error:  # which do not know the file
        raise ArtifactError(f"{path}: {error}") from error
    given.check_taken(path)
    return sae
