"""A CPU worker that makes what a later pipeline stage receives into."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class PipelineWorker(CPUWorker):  # type: ignore[misc]  # vLLM is untyped here
    """
    vLLM makes those tensors in a trial run that its CPU worker leaves out.

    Without them the second stage of 0.32.0 fails at its first step.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_model(*args, **kwargs)
        runner = self.model_runner
        runner.intermediate_tensors = self.get_model().make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens,
            dtype=self.model_config.dtype,
            device=runner.device,
        )
        return result
