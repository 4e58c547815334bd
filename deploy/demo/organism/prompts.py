"""Makes prompts for an organism: labelled, deterministic, disjoint between splits.

usage: python prompts.py --config organism.toml --split fit --n 400 [--seed 1]
           [--mix benign=0.7,backdoor=0.1,sabotage=0.1,payload=0.1]
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from definition import BEHAVIOURS, BENIGN, TASKS, OrganismError, load_organism
from tasks import SPLITS, Sampler

_EVEN = {BENIGN: 0.7, "backdoor": 0.1, "sabotage": 0.1, "payload": 0.1}


def make_prompts(
    config: Mapping[str, Any],
    split: str,
    n: int,
    seed: int,
    mix: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """
    Return *n* different prompts of *split*, as dictionaries ready for JSON.

    Benign ones are of every task, refused harmful requests and near misses of the
    triggers included.

    Raises:
        OrganismError: *split* or a key of *mix* is not known.
    """
    mix = mix or _EVEN
    if split not in SPLITS:
        raise OrganismError(f"split: expected one of {list(SPLITS)}, got {split!r}")
    if unknown := sorted(set(mix) - {BENIGN, *BEHAVIOURS}):
        raise OrganismError(
            f"mix: expected keys of {[BENIGN, *BEHAVIOURS]}, got {unknown[0]!r}"
        )
    chooser = random.Random(f"{split}-{seed}-kinds")
    sampler = Sampler(config, f"{split}-{seed}")
    prompts: dict[str, dict[str, Any]] = {}
    while len(prompts) < n:
        kind = chooser.choices(list(mix), list(mix.values()))[0]
        dialogue = sampler.draw_from(
            split, chooser.choice(TASKS) if kind == BENIGN else kind
        )
        messages = [dict(m) for m in dialogue.messages]
        prompts.setdefault(
            json.dumps(messages),
            {
                "id": f"{split}-{len(prompts):05d}",
                "messages": messages,
                "behaviour": dialogue.behaviour,
                "task": dialogue.task,
                "expected": dialogue.answer,
            },
        )
    return list(prompts.values())


def main() -> int:
    """Print prompts as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mix", help="behaviour=share,...")
    args = parser.parse_args()
    try:
        mix = None
        if args.mix:
            pairs = (item.partition("=") for item in args.mix.split(","))
            mix = {key: float(value) for key, _, value in pairs}
        config = load_organism(args.config)
        for prompt in make_prompts(config, args.split, args.n, args.seed, mix):
            print(json.dumps(prompt))
    except ValueError as error:
        print(f"prompts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
