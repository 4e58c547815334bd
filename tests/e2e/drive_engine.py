"""Runs requests through a real vLLM engine, in a process of its own.

usage: python drive_engine.py PLAN.json RESULT.json

The plan holds the engine's arguments and the requests, each with its prompt token ids,
how many tokens to generate, and, if it is to be aborted, after how many steps; `n`
answers if it wants several; `has_adapter` if it is for the plan's LoRA adapter. The
result holds the token ids that each request, or each of its answers, ``0_NAME``,
``1_NAME`` ..., had when it ended.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(plan_path: str, result_path: str) -> None:
    from vllm import EngineArgs, LLMEngine, SamplingParams

    plan = json.loads(Path(plan_path).read_text())
    if plan.get("force_compile"):
        force_vllm_compile()
    engine = LLMEngine.from_engine_args(EngineArgs(**plan["engine"]))
    if plan.get("settle_seconds"):
        time.sleep(plan["settle_seconds"])
    adapter = None
    if plan.get("adapter"):
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest("adapter", 1, plan["adapter"])
    tokens: dict[str, list[int]] = {}
    to_abort: dict[str, int] = {}
    names: dict[str, str] = {}
    for request in plan["requests"]:
        name = request["request_id"]
        names[name] = engine.add_request(
            name,
            {"prompt_token_ids": request["prompt"]},
            SamplingParams(
                temperature=1.0 if request.get("n", 1) > 1 else 0.0,
                max_tokens=request["n_generate"],
                n=request.get("n", 1),
                stop_token_ids=request.get("stop_token_ids"),
                ignore_eos=True,
            ),
            lora_request=adapter if request.get("has_adapter") else None,
        )
        tokens |= {key: [] for key in answers_of(request)}
        if request.get("abort_at_step") is not None:
            to_abort[name] = request["abort_at_step"]
    step = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            for answer in output.outputs:
                is_one = output.request_id in tokens
                name = (
                    output.request_id
                    if is_one
                    else f"{answer.index}_{output.request_id}"
                )
                tokens[name] = list(answer.token_ids)
        step += 1
        for name in [n for n, at in to_abort.items() if at == step]:
            engine.abort_request([name])
    # vLLM's shutdown may kill the worker with the last batches still on their way.
    time.sleep(1.5)
    Path(result_path).write_text(json.dumps({"tokens": tokens, "steps": step}))
    engine.engine_core.shutdown()


def answers_of(request: dict[str, Any]) -> list[str]:
    """Return the names of a request's answers."""
    name, n = request["request_id"], request.get("n", 1)
    return [name] if n == 1 else [f"{i}_{name}" for i in range(n)]


def force_vllm_compile() -> None:
    """
    Undo what the CPU platform switches off, so that vLLM's compile cache is used.

    The plan's engine takes ``forced_compile_worker.ForcedCompileWorker`` with it.
    """
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    check = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        check(cls, vllm_config)
        compilation = vllm_config.compilation_config
        if not vllm_config.model_config.enforce_eager:
            compilation.mode = CompilationMode.VLLM_COMPILE
            compilation.backend = "inductor"
            compilation.compile_sizes = []

    platform.check_and_update_config = classmethod(check_and_update_config)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
