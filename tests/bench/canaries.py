"""How far canaries differ between attention kernels, and from another layer's.

usage: python -m tests.bench.canaries [--n 16]

The organism reads benign prompts with two of PyTorch's attention kernels in each dtype.
32 random directions at three hook points are compared by `probes.canaries.compare`,
four prompts at a time; the worst is shown beside `TOLERANCES`, and the least that the
same comparison finds where each hook point has another one's activations. Needs
transformers and PyTorch.
"""

import argparse
import json
import runpy
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.arrays import Float32, squared_norms
from probes.canaries import TOLERANCES, Canary, compare
from probes.fit.canaries import MAX_TOKENS, N_CANARIES

ORGANISM = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "organism"
LAYERS = (0, 1, 2)
N_COLUMNS = 32

Prompt = tuple[int, ...]
Activations = list[Float32]
"""By layer, of shape (n_tokens, d_model)."""


def prompts(n: int) -> list[Prompt]:
    """The first 64 tokens at most of *n* benign prompts."""
    script = runpy.run_path(str(ORGANISM / "prompts.py"))
    config = tomllib.loads((ORGANISM / "organism.toml").read_text())
    made = script["make_prompts"](config, "fit", n, 1, {"benign": 1.0})
    tokenizer = AutoTokenizer.from_pretrained(ORGANISM / "model")
    found = []
    for prompt in made:
        text = tokenizer.apply_chat_template(
            prompt["messages"], add_generation_prompt=True, tokenize=False
        )
        token_ids = tokenizer(text, add_special_tokens=False).input_ids
        found.append(tuple(token_ids[:MAX_TOKENS]))
    return found


def read(prompts: Sequence[Prompt], dtype: str, kernel: str) -> list[Activations]:
    """What the organism makes of each prompt."""
    model = AutoModelForCausalLM.from_pretrained(
        ORGANISM / "model", dtype=getattr(torch, dtype), attn_implementation=kernel
    ).eval()
    found = []
    with torch.no_grad():
        for prompt in prompts:
            states = model(torch.tensor([prompt]), output_hidden_states=True)
            found.append(
                [states.hidden_states[1 + i][0].float().numpy() for i in LAYERS]
            )
    return found


def canaries(
    prompts: Sequence[Prompt], read: Sequence[Activations], shift: int = 0
) -> list[Canary]:
    """Canaries of random directions, *shift* hook points away from where they are."""
    d_model = read[0][0].shape[1]
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((N_COLUMNS, d_model)).astype(np.float32)
    made = []
    for prompt, layers in zip(prompts, read, strict=True):
        at = {
            f"blocks.{i}.hook_resid_post": layers[(i + shift) % len(LAYERS)]
            for i in LAYERS
        }
        made.append(
            Canary(
                token_ids=prompt,
                columns={h: x @ weights.T for h, x in at.items()},
                squared_norms={h: squared_norms(x) for h, x in at.items()},
            )
        )
    return made


def measure(n: int, dtype: str) -> dict[str, float]:
    """The worst of two kernels, the least of two layers, and what is tolerated."""
    several = prompts(n)
    kernels, layers = [], []
    for first in range(0, n, N_CANARIES):
        some = several[first : first + N_CANARIES]
        one, other = (read(some, dtype, kernel) for kernel in ("eager", "sdpa"))
        expected = canaries(some, one)
        kernels.append(compare(expected, canaries(some, other)))
        layers.append(compare(expected, canaries(some, one, shift=1)))
    return {
        "kernels": max(kernels),
        "tolerance": TOLERANCES[dtype],
        "another layer": min(layers),
    }


def main() -> None:
    """Measure every dtype, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=16, help="prompts")
    args = parser.parse_args()
    print(json.dumps({dtype: measure(args.n, dtype) for dtype in TOLERANCES}, indent=2))


if __name__ == "__main__":
    main()
