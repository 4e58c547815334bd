"""A CPU worker whose rows are told in the scheduler's order, not in the runner's."""

from dataclasses import replace
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from service.capture import worker as capture_worker
from service.capture.rows import Rows, read_rows, scheduled_rows


def _read_rows(runner: Any, scheduler_output: Any) -> Rows:
    rows = read_rows(runner, scheduler_output)
    asked = scheduled_rows(scheduler_output)
    return replace(asked, token_ids=rows.token_ids, slots=rows.slots)


class ConfusedWorker(CPUWorker):  # type: ignore[misc]  # vLLM is untyped here
    """Puts `_read_rows` where the plugin looks for `read_rows`."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        vars(capture_worker)["read_rows"] = _read_rows
        return super().load_model(*args, **kwargs)
