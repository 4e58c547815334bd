"""One engine of the benchmark: it answers on stdout how long each round took.

usage: python -m tests.gpu.engine PLAN.json

The plan has vLLM's arguments and, for forward hooks, the layers that get one. Each line
of stdin is a round: batch, prompt and generated tokens, repeats. The answer is a line
with the seconds. Everything else that this process says goes to stderr.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Start the engine, and time rounds until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from vllm import LLM

    plan = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(**plan["engine"])
    if plan["hooked_layers"]:
        llm.apply_model(functools.partial(add_hooks, layers=plan["hooked_layers"]))
    time.sleep(plan["settle_seconds"])
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(f"{run_round(llm, json.loads(line), plan['clear']):.6f}\n")


def run_round(llm: Any, asked: dict[str, int], clear: str) -> float:
    """Return the seconds that *asked* took; then clear what a peer wrote to disk."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0,
        max_tokens=asked["n_generate"],
        ignore_eos=True,
        detokenize=False,
    )
    prompts: Any = [
        {"prompt_token_ids": [5 + (7 * i + k) % 400 for k in range(asked["n_prompt"])]}
        for i in range(asked["batch"])
    ]
    began = time.perf_counter()
    for _ in range(asked["repeats"]):
        llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    for path in Path(clear).rglob("*") if clear else ():
        path.unlink(missing_ok=True)
    return seconds


def add_hooks(model: Any, layers: list[int]) -> None:
    """Put a forward hook that copies to the host on *layers*, as hook tools do."""

    def hook(module: Any, arguments: Any, output: Any) -> None:
        (output[0] + output[1]).cpu()

    for layer in layers:
        model.model.layers[layer].register_forward_hook(hook)


if __name__ == "__main__":
    main()
