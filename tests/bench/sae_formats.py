"""Rules over a few features of every checkpoint format against its full encoder.

usage: python -m tests.bench.sae_formats [--tokens 1000000] [--only NAME]

The checkpoints of the contract suite (width 16, 64 features, random weights) are
written, read and watched: on how many tokens a rule on the watched rows holds where the
rule on the full encoding does not, or the other way round.
"""

import argparse
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from probes.detector import score
from probes.rules import RULES
from probes.sae_formats import SAE, load_sae
from tests.bench.sae_rules import CHUNK, holds, watching
from tests.contract.sae_checkpoints import Case
from tests.contract.sae_files import FILES
from tests.contract.sae_folders import FOLDERS
from tests.contract.sae_saelens import SAELENS

CASES = SAELENS | FOLDERS | FILES
WATCHED = [5, 40]


def main() -> None:
    """Print a line for each checkpoint; the status is 1 if an outcome was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="checkpoints with this in the name")
    args = parser.parse_args()
    total = 0
    for name, case in CASES.items():
        if args.only in name:
            wrong, held = n_wrong(name, case, args.tokens)
            total += wrong
            print(
                f"{name:26} {wrong} of {len(RULES)} x {args.tokens} outcomes wrong, "
                f"a rule holds on {held}",
                flush=True,
            )
    raise SystemExit(1 if total else 0)


def n_wrong(name: str, case: Case, n_tokens: int) -> tuple[int, int]:
    """Outcomes that differ from the full encoder's, and how often a rule holds."""
    with tempfile.TemporaryDirectory() as folder:
        path, _ = case.write(Path(folder) / "checkpoint")
        sae = load_sae(path, **case.facts)
    # Detectors read the residual stream only; the formula is the same elsewhere.
    places = tuple(f"blocks.{i}.hook_resid_post" for i in range(sae.n_sources))
    return _compare(
        replace(sae, hook_points=places), n_tokens, zlib.crc32(name.encode())
    )


def _compare(sae: SAE, n_tokens: int, seed: int) -> tuple[int, int]:
    rng = np.random.default_rng(seed)
    detectors = {rule: watching(sae, WATCHED, rule) for rule in RULES}
    n_different = n_held = 0
    for start in range(0, n_tokens, CHUNK):
        size = (min(CHUNK, n_tokens - start), sae.n_sources, sae.d_model)
        x = rng.normal(size=size).astype(np.float32)
        sources = {h: x[:, i].copy() for i, h in enumerate(sae.hook_points)}
        full = sae.encode(x.reshape(len(x), -1))[:, WATCHED]
        for rule, detector in detectors.items():
            found = score(detector, sources)[:, 0] != 0
            # A raw TopK value may be below 0, and weighs as it is.
            is_sum = rule == "weighted_sum"
            expected = full.any(axis=1) if is_sum else holds(rule, full)
            n_different += int((found != expected).sum())
            n_held += int(expected.sum())
    return n_different, n_held


if __name__ == "__main__":
    main()
