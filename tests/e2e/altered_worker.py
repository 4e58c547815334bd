"""A CPU worker whose weights are not those of its files."""

from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class AlteredWorker(CPUWorker):  # type: ignore[misc]  # vLLM is untyped here
    """Changes every weight by a few per cent, after they were loaded."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_model(*args, **kwargs)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.get_model().parameters():
                weight *= 1 + 0.05 * torch.randn(weight.shape, generator=generator)
        return result
