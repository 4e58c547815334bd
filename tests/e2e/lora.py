"""A LoRA adapter of the organism, and the same model with the adapter merged in."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.e2e.engines import ORGANISM

_RANK, _ALPHA = 4, 8
_MODULES = ("q_proj", "v_proj", "o_proj")


def make_adapter(folder: Path) -> tuple[Path, Path]:
    """Write a random adapter and the merged model; return their folders."""
    model = AutoModelForCausalLM.from_pretrained(ORGANISM, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] not in _MODULES:
            continue
        n_out, n_in = module.weight.shape
        down = torch.randn(_RANK, n_in, generator=generator) * 0.05
        up = torch.randn(n_out, _RANK, generator=generator) * 0.05
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        with torch.no_grad():
            module.weight += up @ down * (_ALPHA / _RANK)
    adapter, merged = folder / "adapter", folder / "merged"
    adapter.mkdir(parents=True)
    save_file(tensors, adapter / "adapter_model.safetensors")
    facts = {
        "peft_type": "LORA",
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "target_modules": list(_MODULES),
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(facts))
    model.save_pretrained(merged)
    return adapter, merged
