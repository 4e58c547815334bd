# Facts: circuit-tracer 0.5, single_layer_transcoder.py, cross_layer_transcoder.py;
# SAELens 6.54, pretrained_sae_loaders.py (mwhanna, mntss).
"""circuit-tracer's transcoders: layer_N.safetensors, or W_enc_N.safetensors of many."""

import re
from pathlib import Path

from probes.errors import ArtifactError
from probes.sae_formats.folding import turned
from probes.sae_formats.given import Given
from probes.sae_formats.record import SAE
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import Tensors, check_size

_LAYER = re.compile(r"layer_(0|[1-9][0-9]{0,3})\.safetensors")
_ENCODER = re.compile(r"W_enc_(0|[1-9][0-9]{0,3})\.safetensors")
_SCALAR = re.compile(r"(\w+):[ \t]+[\"']?([^\"'#\s]+)[\"']?[ \t]*(?:#.*)?")
_MAX_YAML_BYTES = 1 << 20


def read_circuit_tracer(path: Path, given: Given) -> SAE:
    """
    Read one layer's transcoder.

    ``pre = x W_enc^T + b_enc``, then ReLU, or JumpReLU where there are thresholds. It
    reads what enters the MLP; config.yaml beside it names that place and the model.

    Raises:
        ArtifactError: As `load_sae`.
    """
    layer, config = _LAYER.fullmatch(path.name), _config(path)
    tensors = open_safetensors(path)
    sae = _transcoder(
        tensors,
        given,
        names=("W_enc", "b_enc", "activation_function.threshold"),
        layer=layer[1] if layer else None,
        config=config,
        has_decoder=True,
    )
    tensors.close(["W_skip"])
    return sae


def read_cross_layer(path: Path, given: Given) -> SAE:
    """
    Read one layer's encoder of a cross-layer transcoder; its decoders are left out.

    Raises:
        ArtifactError: As `load_sae`.
    """
    match = _ENCODER.fullmatch(path.name)
    if match is None:
        raise ArtifactError(f"{path}: expected a file W_enc_N.safetensors")
    n, tensors = match[1], open_safetensors(path)
    sae = _transcoder(
        tensors,
        given,
        names=(f"W_enc_{n}", f"b_enc_{n}", f"threshold_{n}"),
        layer=n,
        config=_config(path),
        has_decoder=False,
    )
    tensors.close([f"b_dec_{n}"])
    return sae


def _transcoder(
    tensors: Tensors,
    given: Given,
    *,
    names: tuple[str, str, str],
    layer: str | None,
    config: dict[str, str],
    has_decoder: bool,
) -> SAE:
    weight, bias, threshold = names
    d_sae, d_in = tensors.shape(weight, 2)
    hook = config.get("feature_input_hook")
    found = (f"blocks.{layer}.{hook}",) if hook and layer else None
    is_jump = threshold in tensors
    W_dec = b_dec = None  # noqa: N806
    if has_decoder:
        W_dec = tensors.floats("W_dec", (d_sae, "d_out"))  # noqa: N806
        b_dec = tensors.floats("b_dec", (W_dec.shape[1],))
    return SAE(
        W_enc=turned(tensors.floats(weight, (d_sae, d_in))),
        b_enc=tensors.floats(bias, (d_sae,)),
        activation="jumprelu" if is_jump else "relu",
        threshold=tensors.floats(threshold, (d_sae,)) if is_jump else None,
        hook_points=given.places(tensors.file, found),
        model_name=given.model(tensors.file, config.get("model_name")),
        W_dec=W_dec,
        b_dec=b_dec,
        is_transcoder=True,
    )


def _config(path: Path) -> dict[str, str]:
    """The plain ``key: value`` lines of config.yaml beside *path*; no other YAML."""
    file = path.with_name("config.yaml")
    if not file.is_file():
        return {}
    if check_size(file) > _MAX_YAML_BYTES:
        raise ArtifactError(f"{file}: expected at most {_MAX_YAML_BYTES} bytes")
    lines = file.read_text("utf-8", errors="replace").splitlines()
    matches = [_SCALAR.fullmatch(line) for line in lines]
    return {match[1]: match[2] for match in matches if match}
