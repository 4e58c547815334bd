"""A CPU worker whose runner's layout can not be read in every fifth step."""

from itertools import count
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from service.capture import worker as capture_worker
from service.capture.rows import LayoutError, Rows, read_rows

_calls = count(1)


def _read_rows(runner: Any, scheduler_output: Any) -> Rows:
    if next(_calls) % 5 == 0:
        raise LayoutError("made unreadable by a test")
    return read_rows(runner, scheduler_output)


class UnreadableWorker(CPUWorker):  # type: ignore[misc]  # vLLM is untyped here
    """Puts `_read_rows` where the plugin looks for `read_rows`."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        vars(capture_worker)["read_rows"] = _read_rows
        return super().load_model(*args, **kwargs)
