"""Puts a `CaptureWorker` around the methods of one vLLM worker."""

import functools
from typing import Any

import torch

from service.capture.settings import CaptureSettings
from service.capture.worker import CaptureWorker

_CHANGES_WEIGHTS = ("reload_weights", "update_weights")
"""Methods of the worker after which the same tokens have other activations."""


def wrap_worker(worker: Any, settings: CaptureSettings) -> None:
    """
    Make *worker*, a vLLM Worker just constructed, capture. No class is changed.

    Raises:
        CaptureError: The engine's configuration holds a mode that the tap cannot
            serve correctly.
    """
    capture = CaptureWorker(worker, settings)
    load, warm_up = worker.load_model, worker.compile_or_warm_up_model
    execute, sample = worker.execute_model, worker.sample_tokens
    shutdown = worker.shutdown

    def load_model(*args: Any, **kwargs: Any) -> Any:
        result = load(*args, **kwargs)
        capture.after_load()
        return result

    def compile_or_warm_up_model() -> Any:
        result = warm_up()
        capture.after_warm_up()
        return result

    @torch.inference_mode()
    def execute_model(scheduler_output: Any) -> Any:
        capture.before_step(scheduler_output)
        result = execute(scheduler_output)
        capture.after_step(scheduler_output)
        return result

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        output = sample(*args, **kwargs)
        capture.after_sampling(output)
        return output

    def shut_down() -> Any:
        capture.close()
        return shutdown()

    def marking(change: Any) -> Any:
        @functools.wraps(change)
        def changed(*args: Any, **kwargs: Any) -> Any:
            # Before, and after: whatever fails half way has changed something too.
            capture.weights_changed()
            try:
                return change(*args, **kwargs)
            finally:
                capture.weights_changed()

        return changed

    for name in _CHANGES_WEIGHTS:
        if hasattr(worker, name):
            setattr(worker, name, marking(getattr(worker, name)))
    if hasattr(worker, "add_lora"):
        add = worker.add_lora
        again = marking(add)
        worker.add_lora = lambda r: again(r) if r.load_inplace else add(r)
    worker.load_model = load_model
    worker.compile_or_warm_up_model = compile_or_warm_up_model
    worker.execute_model = execute_model
    if worker.vllm_config.speculative_config is not None:
        worker.sample_tokens = sample_tokens
    worker.shutdown = shut_down
