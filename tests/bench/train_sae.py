"""Trains small SAEs on a data set's activations: checkpoints that are not random.

usage: python -m tests.bench.train_sae --data DATASET --out FOLDER [--d-sae 1024]
           [--steps 3000]

Writes, each as its library has it: ``topk`` (EleutherAI sparsify; arXiv 2406.04093),
``batchtopk`` (dictionary_learning; arXiv 2412.06410) and ``relu`` (SAELens; L1 on
features). `tests.bench.sae_rules --checkpoint` reads them. Prints the share of variance
that each explains and how many features are on, of the tokens it was trained on.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from probes import load_dataset
from probes.dataset import Dataset

K, BATCH, SPARSITY = 16, 1024, 1.0

Activation = Callable[[torch.Tensor], torch.Tensor]


def top_k(pre: torch.Tensor) -> torch.Tensor:
    """The k largest of each token."""
    values, places = pre.topk(K, dim=1)
    return torch.zeros_like(pre).scatter(1, places, values.relu())


def batch_top_k(pre: torch.Tensor) -> torch.Tensor:
    """As many as k a token, the largest of the whole batch."""
    level = pre.flatten().topk(K * len(pre)).values[-1]
    return torch.where(pre >= level, pre.relu(), 0)


KINDS: dict[str, Activation] = {
    "topk": top_k,
    "batchtopk": batch_top_k,
    "relu": torch.relu,
}


def train(x: torch.Tensor, d_sae: int, kind: str, steps: int) -> dict[str, Any]:
    """Parameters, (d_in, d_sae) and (d_sae, d_in), and what they explain."""
    torch.manual_seed(0)
    d_in = x.shape[1]
    directions = torch.randn(d_sae, d_in)
    # Near the tokens, so that few features are never on.
    decoder = (directions / directions.norm(dim=1, keepdim=True)).requires_grad_()
    encoder = decoder.detach().T.clone().requires_grad_()
    bias = torch.zeros(d_sae, requires_grad=True)
    centre = x.mean(dim=0).clone().requires_grad_()
    optimiser = torch.optim.Adam([encoder, decoder, bias, centre], lr=1e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (BATCH,))]
        features = KINDS[kind]((batch - centre) @ encoder + bias)
        error = (features @ decoder + centre - batch).square().sum(dim=1).mean()
        loss = error + (SPARSITY * features.sum(dim=1).mean() if kind == "relu" else 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    with torch.no_grad():
        some = x[torch.randperm(len(x))[: 8 * BATCH]]
        pre = (some - centre) @ encoder + bias
        features = KINDS[kind](pre)
        error = (features @ decoder + centre - some).square().sum()
        spread = (some - some.mean(dim=0)).square().sum()
        on = features[features > 0]
        return {
            "encoder": encoder.detach().numpy(),
            "decoder": decoder.detach().numpy(),
            "bias": bias.detach().numpy(),
            "centre": centre.detach().numpy(),
            "threshold": float(on.min()),
            "explained": float(1 - error / spread),
            "n_on": float((features > 0).sum() / len(features)),
        }


def write(folder: Path, kind: str, made: dict[str, Any], dataset: Dataset) -> None:
    """Write the checkpoint of *kind* as its library has it."""
    (hook_point,) = dataset.activations
    layer = int(hook_point.split(".")[1])
    d_in, d_sae = made["encoder"].shape
    if kind == "topk":
        folder = folder / f"layers.{layer}"
        folder.mkdir(parents=True)
        cfg = {
            "activation": "topk",
            "expansion_factor": d_sae // d_in,
            "normalize_decoder": True,
            "num_latents": d_sae,
            "k": K,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": d_in,
        }
        (folder / "cfg.json").write_text(json.dumps(cfg))
        tensors = {
            "encoder.weight": made["encoder"].T,
            "encoder.bias": made["bias"],
            "W_dec": made["decoder"],
            "b_dec": made["centre"],
        }
        _save(folder / "sae.safetensors", tensors)
    elif kind == "batchtopk":
        folder.mkdir(parents=True)
        trainer = {
            "dict_class": "BatchTopKSAE",
            "activation_dim": d_in,
            "dict_size": d_sae,
            "k": K,
            "layer": layer,
            "lm_name": dataset.identity.model,
            "submodule_name": f"resid_post_layer_{layer}",
        }
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        state = {
            "encoder.weight": torch.tensor(made["encoder"].T.copy()),
            "encoder.bias": torch.tensor(made["bias"]),
            "decoder.weight": torch.tensor(made["decoder"].T.copy()),
            "b_dec": torch.tensor(made["centre"]),
            "k": torch.tensor(K),
            "threshold": torch.tensor(made["threshold"]),
        }
        torch.save(state, folder / "ae.pt")
    else:
        folder.mkdir(parents=True)
        cfg = {
            "architecture": "standard",
            "d_in": d_in,
            "d_sae": d_sae,
            "dtype": "float32",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "hook_name": hook_point,
                "model_name": dataset.identity.model,
            },
        }
        (folder / "cfg.json").write_text(json.dumps(cfg))
        tensors = {
            "W_enc": made["encoder"],
            "W_dec": made["decoder"],
            "b_enc": made["bias"],
            "b_dec": made["centre"],
        }
        _save(folder / "sae_weights.safetensors", tensors)


def _save(path: Path, tensors: dict[str, Any]) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(whole, path)


def main() -> None:
    """Train and write every kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    dataset = load_dataset(args.data)
    (rows,) = dataset.activations.values()
    x = torch.tensor(np.array(rows))
    for kind in KINDS:
        made = train(x, args.d_sae, kind, args.steps)
        write(args.out / kind, kind, made, dataset)
        print(f"{kind:10} explained {made['explained']:.3f}, on {made['n_on']:.1f}")


if __name__ == "__main__":
    main()
