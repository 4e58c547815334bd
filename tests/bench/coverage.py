"""Whether every position is judged, and rightly, whatever vLLM does with a request.

usage: python -m tests.bench.coverage [--runs 1] [--seed 0] [--requests 500]
           [--shared 96] [--blocks 18] [--speculate] [--no-prefix-cache]

Runs requests that share a prefix through a real engine with its prefix cache on, some
aborted, some with three answers, in chunks of 64 tokens, with so few KV blocks that
requests are preempted; lets a monitor watch what the plugin sent, and holds each
request's scores, position by position, against Hugging Face's model without a cache.
Ends with status 1 if a position is lost, missing, too many, of another token, or off.
"""

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from probes.bank import ProjectionBank
from service.wire import bank_to_proto
from tests.e2e.covering import NGRAM, cover, make_probes, make_shared_requests
from tests.e2e.engines import run_engine


def main() -> int:
    """Run, print the counts and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="each of other requests")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--shared", type=int, default=96, help="tokens of the prefix")
    parser.add_argument("--blocks", type=int, default=18, help="KV blocks of 32 tokens")
    parser.add_argument("--speculate", action="store_true", help="ngram drafts")
    parser.add_argument("--no-prefix-cache", action="store_true")
    args = parser.parse_args()
    totals: Counter[str] = Counter()
    worst = 0.0
    for seed in range(args.seed, args.seed + args.runs):
        counts = run_once(args, seed)
        worst = max(worst, counts.pop("worst"))
        totals.update(counts)
        print(f"seed {seed}: so far {dict(totals)}", flush=True)
    for name, value in totals.items():
        print(f"{value:12.0f} {name}")
    print(f"{worst:12.2g} worst")
    wrong = ("n_lost", "n_missing", "n_beyond", "n_wrong_token")
    return int(sum(totals[name] for name in wrong) > 0 or worst > 1e-4)


def run_once(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Run one engine on the requests of *seed* and return its counts."""
    probes = make_probes()
    with tempfile.TemporaryDirectory(prefix="innerwatch-") as folder:
        run = run_engine(
            Path(folder) / "run",
            mode="pushdown",
            enforce_eager=True,
            n_requests=0,
            requests=make_shared_requests(args.requests, args.shared, seed),
            bank=bank_to_proto(ProjectionBank.compile(probes)),
            enable_prefix_caching=not args.no_prefix_cache,
            speculative_config=NGRAM if args.speculate else None,
            block_size=32,
            num_gpu_blocks_override=args.blocks,
        )
    counts = asdict(cover(run, probes))
    counts["n_preemptions"] = sum(len(batch.preempted) for batch in run.batches)
    counts["n_draft_rows"] = sum(int(batch.n_drafts.sum()) for batch in run.batches)
    return counts


if __name__ == "__main__":
    sys.exit(main())
