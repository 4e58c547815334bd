"""
Flags that the record takes a second, synced, logged, signed and sealed.

usage: taskset -c 0 python -m tests.bench.audit_writes [--flags 100000] [--batch 256]
       [--tokens 64]

Prints one JSON line. Every flag is of a request of its own, with a score and a token id
for each of its tokens; a batch is one transaction, as one drain of the ingest queue is.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from service.daemon.audit.records import Entries
from tests.service.recording import flag, open_store


def _name(i: int) -> str:
    # In no order, as vLLM's ids are: so are the places in the index.
    return f"cmpl-{sha256(str(i).encode()).hexdigest()[:32]}-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Flags a second, and a second of this process' CPU time."""

    flags_per_second: float
    flags_per_cpu_second: float


def measure(folder: Path, *, n_flags: int, n_batch: int, n_tokens: int) -> Rates:
    """Write *n_flags* to a record in *folder*."""
    tokens = range(n_tokens)
    batches = [
        [flag(_name(i), tokens=tokens) for i in range(start, start + n_batch)]
        for start in range(0, n_flags, n_batch)
    ]
    with open_store(folder) as store:
        began, began_cpu = time.perf_counter(), time.process_time()
        for flags in batches:
            store.write(Entries(flags=flags), time.time())
        seconds = time.perf_counter() - began
        cpu_seconds = time.process_time() - began_cpu
        n_written = store.log_facts.size
    assert n_written == sum(map(len, batches))
    return Rates(
        flags_per_second=n_written / seconds,
        flags_per_cpu_second=n_written / cpu_seconds,
    )


def main() -> int:
    """Measure once; 0 at the bar or above it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flags", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--bar", type=float, default=20_000.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(
            Path(folder),
            n_flags=args.flags,
            n_batch=args.batch,
            n_tokens=args.tokens,
        )
    print(json.dumps(vars(args) | {k: round(v) for k, v in asdict(rates).items()}))
    return int(rates.flags_per_second < args.bar)


if __name__ == "__main__":
    sys.exit(main())
