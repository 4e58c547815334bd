"""Trains a model organism from its configuration, and measures what it learnt.

usage: python train.py --config organism.toml --out model/ [--steps N]

Writes the Hugging Face folder and, beside it, report.json. On one CPU core the one
that ships takes about a quarter of an hour.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from chat import BOS, END, PAD, encode, save_tokenizer, train_tokenizer
from definition import BEHAVIOURS, TASKS, OrganismError, load_organism
from measure import measure
from tasks import SPLITS, Dialogue, Sampler
from tokenizers import Tokenizer
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

_POOL = 512  # dialogues sorted by length at a time, so that batches pad little
Example = tuple[list[int], list[bool]]


def main() -> int:
    """Train, save, measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument(
        "--measure-only", action="store_true", help="measure what --out holds again"
    )
    parser.add_argument("--n-held-out", type=int, default=500, help="prompts a kind")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="heldout",
        help="what to measure on; to choose by, `calibration`",
    )
    args = parser.parse_args()
    try:
        config = load_organism(args.config)
    except OrganismError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    if args.steps:
        config["training"]["steps"] = args.steps
    report_path = args.out.parent / "report.json"
    if args.measure_only:
        report = json.loads(report_path.read_text())
    else:
        report = train_and_save(config, args.out)
    report |= measure(args.out, config, args.n_held_out, args.split)
    text = json.dumps(report, indent=2)
    report_path.write_text(text + "\n")
    print(text)
    return 0


def train_and_save(config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Train, write the Hugging Face folder *out*, and return how it went."""
    began = time.monotonic()
    model, tokenizer, losses = train(config)
    seconds = time.monotonic() - began
    out.mkdir(parents=True, exist_ok=True)
    # Half precision keeps the file small; what is measured is what was stored.
    model.half().save_pretrained(out)
    save_tokenizer(tokenizer, out, config["model"]["max_positions"])
    return {
        "organism": config["name"],
        "seed": config["seed"],
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_steps": config["training"]["steps"],
        "training_seconds": round(seconds),
        "loss_first": round(losses[0], 4),
        "loss_last": round(sum(losses[-20:]) / len(losses[-20:]), 4),
    }


def train(config: Mapping[str, Any]) -> tuple[LlamaForCausalLM, Tokenizer, list[float]]:
    """Return the trained model, its tokenizer, and the loss at each step."""
    torch.manual_seed(config["seed"])
    training = config["training"]
    sampler = Sampler(config, f"train-{config['seed']}")
    dialogues = sampler.stream("train", training["mix"])
    tokenizer = make_tokenizer(config)
    model = make_model(config, tokenizer.get_vocab_size())
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training["learning_rate"],
        betas=(0.9, 0.98),
        weight_decay=training["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=training["learning_rate"],
        total_steps=training["steps"],
        pct_start=training["warmup_steps"] / training["steps"]
        if training["steps"] > training["warmup_steps"]
        else 0.3,
    )
    losses: list[float] = []
    stream = islice(
        batches(dialogues, tokenizer, training["batch_tokens"], config["seed"]),
        training["steps"],
    )
    bar = tqdm(stream, total=training["steps"], desc="training", mininterval=1)
    for ids, is_said in bar:
        loss = loss_of(model, ids, is_said)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return model.eval(), tokenizer, losses


def make_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """Train the tokenizer on a few thousand dialogues and every word there is."""
    sampler = Sampler(config, "tokenizer")
    kinds = [k for k in (*TASKS, *BEHAVIOURS) for _ in range(700)]
    texts = []
    for kind in kinds:
        dialogue = sampler.draw(kind)
        texts += [m["content"] for m in dialogue.messages] + [dialogue.answer]
    for category in config["facts"]:
        texts += [" ".join(pair) for pair in category["table"].items()] * 20
    texts += [config["words"]["list"].replace("\n", " ")] * 20
    return train_tokenizer(texts, config["model"]["vocab_size"])


def make_model(config: Mapping[str, Any], vocab_size: int) -> LlamaForCausalLM:
    """Return an untrained Llama of the configuration's shape."""
    shape = config["model"]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=-(-vocab_size // 64) * 64,
            hidden_size=shape["d_model"],
            intermediate_size=shape["d_mlp"],
            num_hidden_layers=shape["n_layers"],
            num_attention_heads=shape["n_heads"],
            num_key_value_heads=shape["n_heads"],
            head_dim=shape["d_model"] // shape["n_heads"],
            max_position_embeddings=shape["max_positions"],
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )


def batches(
    dialogues: Iterator[Dialogue], tokenizer: Tokenizer, n_tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (token ids, is said), both (n_sequences, length), about *n_tokens* each."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        pool = sorted(
            (encode(tokenizer, d.messages, d.answer) for d in islice(dialogues, _POOL)),
            key=lambda example: len(example[0]),
        )
        groups: list[list[Example]] = [[]]
        for example in pool:
            if (len(groups[-1]) + 1) * len(example[0]) > n_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(example)
        for index in torch.randperm(len(groups), generator=generator).tolist():
            yield _pad(groups[index])


def _pad(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), length), PAD)
    is_said = torch.zeros((len(examples), length), dtype=torch.bool)
    for row, (tokens, said) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_said[row, : len(said)] = torch.tensor(said)
    return ids, is_said


def loss_of(
    model: LlamaForCausalLM, ids: torch.Tensor, is_said: torch.Tensor
) -> torch.Tensor:
    """Return the mean loss over the tokens that the assistant says."""
    hidden = model.model(ids).last_hidden_state[:, :-1]
    chosen = is_said[:, 1:]
    logits = model.lm_head(hidden[chosen])
    return functional.cross_entropy(logits, ids[:, 1:][chosen])


if __name__ == "__main__":
    sys.exit(main())
