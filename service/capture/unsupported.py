"""vLLM modes that the tap cannot serve correctly: refused at start, by name."""

from collections.abc import Callable
from typing import Any

from service.capture.settings import CaptureError


def _is_first_ray_executor(config: Any) -> bool:
    from vllm import envs

    is_ray = config.parallel_config.distributed_executor_backend == "ray"
    return is_ray and not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND


_GUESSERS = ("ngram", "suffix")
"""Methods of speculative decoding that run no model."""

_UNSUPPORTED: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    (
        "speculative decoding by a draft model",
        "its blocks answer to the names of the model's own",
        lambda c: c.speculative_config and c.speculative_config.method not in _GUESSERS,
    ),
    (
        "speculative decoding on several pipeline stages",
        "the last alone knows which draft tokens were kept",
        lambda c: c.speculative_config and c.parallel_config.pipeline_parallel_size > 1,
    ),
    (
        "asynchronous speculative decoding",
        "which draft tokens were kept is not known on the host",
        lambda c: c.speculative_config and c.scheduler_config.async_scheduling,
    ),
    (
        "dual-batch overlap",
        "each half would overwrite the other's rows",
        lambda c: c.parallel_config.use_ubatching,
    ),
    (
        "context parallelism",
        "a rank sees a part of each sequence",
        lambda c: (
            c.parallel_config.decode_context_parallel_size > 1
            or c.parallel_config.prefill_context_parallel_size > 1
        ),
    ),
    (
        "sequence parallelism",
        "a rank sees a part of each step's rows",
        # The pass is gone from vLLM 0.32; earlier versions have it.
        lambda c: getattr(c.compilation_config.pass_config, "enable_sp", False),
    ),
    (
        "the first Ray executor",
        "it calls the model runner past the worker",
        _is_first_ray_executor,
    ),
    (
        "KV-sharing fast prefill",
        "some blocks skip most rows of a prompt",
        lambda c: c.cache_config.kv_sharing_fast_prefill,
    ),
    (
        "encoder-decoder models",
        "two stacks of blocks answer to one name",
        lambda c: c.model_config.is_encoder_decoder,
    ),
)


def check_supported(vllm_config: Any) -> None:
    """Raise `CaptureError`, naming the mode, if *vllm_config* has one of these."""
    for name, reason, is_on in _UNSUPPORTED:
        if is_on(vllm_config):
            raise CaptureError(
                f"innerwatch cannot watch a server with {name}: {reason}; turn it off, "
                f"or start without innerwatch in additional_config"
            )
