"""Entry point `vllm.general_plugins`: waits to be asked, and then arms a worker.

vLLM calls `register` in every process that it starts. It puts two wrappers in place,
neither of which does anything unless `additional_config` or the environment names
innerwatch: `EngineArgs.create_engine_config` completes our settings before vLLM hashes
them, and `WorkerBase.__init__` arms the worker that was made with them.
"""

import functools
from typing import Any

from service.capture.settings import (
    KEY,
    CaptureError,
    settings_from,
    settings_from_environment,
)


def register() -> None:
    """Put the wrappers in place, once a process."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.worker_base import WorkerBase

    if hasattr(WorkerBase.__init__, "innerwatch"):
        return
    EngineArgs.create_engine_config = _with_settings(EngineArgs.create_engine_config)
    WorkerBase.__init__ = _with_capture(WorkerBase.__init__)


def _with_settings(create: Any) -> Any:
    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = self.additional_config
        entry = given.get(KEY, {}) if isinstance(given, dict) else {}
        asked = (
            {**settings_from_environment(), **entry}
            if isinstance(entry, dict)
            else entry
        )
        if entry or (isinstance(asked, dict) and "hook_points" in asked):
            settings = settings_from(asked).to_additional_config()
            self.additional_config = {**(given or {}), KEY: settings}
        return create(self, *args, **kwargs)

    return create_engine_config


def _with_capture(init: Any) -> Any:
    @functools.wraps(init)
    def armed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        given = self.vllm_config.additional_config
        entry = given.get(KEY) if isinstance(given, dict) else None
        if entry is None:
            return
        if "abi" not in entry:
            raise CaptureError(
                f"additional_config.{KEY} reached the worker without its abi: the "
                f"compile cache is not keyed on it, so a graph without taps could load"
            )
        # Imported here: it loads torch operators and gRPC, which only a watched
        # worker pays for.
        from service.capture.wrapping import wrap_worker

        wrap_worker(self, settings_from(entry))

    armed_init.innerwatch = True  # type: ignore[attr-defined]
    return armed_init
