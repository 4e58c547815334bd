"""A CPU worker that takes its taps out of the model when a file appears."""

import os
from pathlib import Path
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class UntappingWorker(CPUWorker):  # type: ignore[misc]  # vLLM is untyped here
    """Undoes the class swap as soon as ``$UNTAP_FILE`` exists."""

    def execute_model(self, scheduler_output: Any) -> Any:
        if Path(os.environ["UNTAP_FILE"]).exists():
            for module in self.get_model().modules():
                if type(module).__name__.startswith("Tapped"):
                    module.__class__ = type(module).__mro__[1]
        return super().execute_model(scheduler_output)
