"""Says which model is served, so that an artifact for another is refused."""

from pathlib import Path
from typing import Any

from probes.identity import identity_of
from service.capture.settings import CaptureSettings
from service.capture.stages import Stage
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_MODES = {
    "pushdown": pb.CAPTURE_MODE_PUSHDOWN,
    "activations": pb.CAPTURE_MODE_ACTIVATIONS,
}


def hello_request(
    vllm_config: Any, settings: CaptureSettings, engine: str, *, stage: Stage
) -> pb.HelloRequest:
    """Return the greeting of *stage*; reads the model's files once to digest them."""
    import vllm

    model = vllm_config.model_config
    served = model.served_model_name
    return pb.HelloRequest(
        engine=engine,
        rank=stage.rank,
        ranks=stage.sending(settings.hook_points),
        rank_hook_points=stage.owned(settings.hook_points),
        data_parallel_rank=vllm_config.parallel_config.data_parallel_index,
        identity=_identity(vllm_config),
        hook_points=settings.hook_points,
        k_max=settings.k_max,
        mode=_MODES[settings.mode],
        vllm_version=vllm.__version__,
        model_runner="V2" if vllm_config.use_v2_model_runner else "V1",
        abi=settings.abi,
        served_model_name=served[0] if isinstance(served, list) else served,
    )


def _identity(vllm_config: Any) -> pb.ModelIdentity:
    model = vllm_config.model_config
    dtype = str(model.dtype).removeprefix("torch.")
    folder = _folder_of(model)
    # Without files (dummy weights, a store that vLLM streams from) the digests are
    # unknown: the daemon refuses bundles that name them.
    if folder is None or not list(folder.glob("*.safetensors")):
        return pb.ModelIdentity(
            model=model.model,
            d_model=model.get_hidden_size(),
            n_layers=model.get_total_num_hidden_layers(),
            dtype=dtype,
        )
    known = identity_of(folder, dtype)
    has_weights = vllm_config.load_config.load_format != "dummy"
    return pb.ModelIdentity(
        model=model.model,
        config_sha256=known.config_sha256,
        weights_sha256=known.weights_sha256 if has_weights else "",
        tokenizer_sha256=known.tokenizer_sha256,
        d_model=known.d_model,
        n_layers=known.n_layers,
        dtype=dtype,
    )


def _folder_of(model: Any) -> Path | None:
    """Return the folder with the model's files, a hub name's local copy included."""
    if Path(model.model).is_dir():
        return Path(model.model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model.model, revision=model.revision, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
