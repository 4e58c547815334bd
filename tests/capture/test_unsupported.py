"""Each mode that the tap would read wrongly is refused, by its name."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.capture.settings import CaptureError
from service.capture.unsupported import check_supported

_EAGLE = SimpleNamespace(method="eagle")
_NGRAM = SimpleNamespace(method="ngram")


def vllm_config() -> Any:
    """vLLM's defaults, as far as they are looked at."""
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            distributed_executor_backend="mp",
            pipeline_parallel_size=1,
            use_ubatching=False,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        speculative_config=None,
        scheduler_config=SimpleNamespace(async_scheduling=True),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace()),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        model_config=SimpleNamespace(is_encoder_decoder=False),
    )


def test_the_defaults_are_supported() -> None:
    """
    A server with none of the modes starts, on a vLLM that has lost one of them too.
    """
    check_supported(vllm_config())


@pytest.mark.parametrize(
    ("part", "field", "value", "name"),
    [
        ("", "speculative_config", _EAGLE, "speculative decoding by a draft model"),
        ("", "speculative_config", _NGRAM, "asynchronous speculative decoding"),
        ("parallel_config", "use_ubatching", True, "dual-batch overlap"),
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "prefill_context_parallel_size", 2, "context parallelism"),
        ("cache_config", "kv_sharing_fast_prefill", True, "KV-sharing fast prefill"),
        ("model_config", "is_encoder_decoder", True, "encoder-decoder models"),
    ],
)
def test_a_mode_that_would_be_misread_is_refused(
    part: str, field: str, value: object, name: str
) -> None:
    """
    The message names the mode, says why, and how to go on.
    """
    config = vllm_config()
    setattr(getattr(config, part) if part else config, field, value)

    with pytest.raises(CaptureError, match=f"with {name}: .*; turn it off"):
        check_supported(config)


def test_sequence_parallelism_of_earlier_versions_is_refused() -> None:
    """
    vLLM before 0.32 has the pass.
    """
    config = vllm_config()
    config.compilation_config.pass_config.enable_sp = True

    with pytest.raises(CaptureError, match="with sequence parallelism: "):
        check_supported(config)
