"""
Whether every way to tamper with a record is found, and nothing where there is none.

usage: python -m tests.bench.audit_tamper [--logs 1000] [--mutations 10000] [--seed 0]

Makes clean records of random content over several runs and verifies each; then makes
copies, alters each in one of the ways of `tests.bench.tampering`, and verifies again,
with the public key and a witness that were kept elsewhere. Prints one JSON line.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from service.daemon.audit.checkpoints import Verifier
from service.daemon.audit.records import ConfigChange, Entries, Event, View
from service.daemon.audit.store import PUBLIC_KEY
from service.daemon.audit.verifying import Witness, verify
from tests.bench.tampering import CLASSES
from tests.service.recording import ENGINE, flag, label, open_store, summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """A record, an *earlier* copy of it, and what was kept elsewhere."""

    folder: Path
    earlier: Path
    verifier: Verifier
    witness: Witness


def random_entries(rng: random.Random, n: int) -> Entries:
    """Entries of most kinds; *n* makes their requests different from all others."""
    names = [f"r{n}-{i}" for i in range(rng.randint(1, 4))]
    tokens = [rng.randrange(1 << 20) for _ in range(rng.randint(1, 12))]
    return Entries(
        flags=[flag(name, tokens=tokens) for name in names],
        summaries=[summary(name, "max", tokens=tokens) for name in names],
        labels=[label(1, request_id="r0-0", note="a note")],
        events=[Event(kind="hello", detail=str(rng.random())) for _ in range(2)],
        views=[View(engine=ENGINE, request_id=names[0], viewer="a", where="page")],
        config_changes=[ConfigChange(key="a.b", before="1", after=str(n))],
    )


def make_clean(folder: Path, rng: random.Random) -> Clean:
    """Make a record in *folder*, over two runs, some of it erased or taken away."""
    record, earlier, at = folder / "record", folder / "earlier", 1000.0
    for run in range(2):
        with open_store(record) as store:
            store.begin(at)
            for i in range(rng.randint(2, 4)):
                at += rng.choice((0.5, 70.0))
                store.write(random_entries(rng, 10 * run + i), at)
            if rng.random() < 0.3:
                store.erase("r0-0", at)
            if rng.random() < 0.3:
                store.retain(1001.0, at)
            store.write(Entries(events=[Event(kind="stop", detail="")]), at)
            facts = store.log_facts
        if run == 0:
            shutil.copytree(record, earlier)
    return Clean(
        folder=record,
        earlier=earlier,
        verifier=Verifier.parse((record / PUBLIC_KEY).read_text()),
        witness=Witness(size=facts.size, root=facts.root_prefix.to_bytes(6, "big")),
    )


def measure(*, n_logs: int, n_mutations: int, seed: int) -> dict[str, object]:
    """Verify clean records and altered ones; return what was counted."""
    rng = random.Random(seed)
    names = list(CLASSES)
    made, missed, n_alarms = Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n_logs):
            place = Path(folder) / str(i)
            clean = make_clean(place, rng)
            n_alarms += bool(
                verify(clean.folder, clean.verifier, clean.witness).findings
            )
            for _ in range(n_mutations * (i + 1) // n_logs - sum(made.values())):
                name = names[sum(made.values()) % len(names)]
                copy = place / "copy"
                shutil.copytree(clean.folder, copy)
                CLASSES[name](copy, clean.earlier, rng)
                made[name] += 1
                if not verify(copy, clean.verifier, clean.witness).findings:
                    missed[name] += 1
                shutil.rmtree(copy)
            shutil.rmtree(place)
    return {
        "n_logs": n_logs,
        "n_false_alarms": n_alarms,
        "n_mutations": sum(made.values()),
        "n_classes": len(made),
        "missed": dict(missed),
    }


def main() -> int:
    """Measure; 0 if all was found and nothing else."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--logs", type=int, default=1_000)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = measure(n_logs=args.logs, n_mutations=args.mutations, seed=args.seed)
    print(json.dumps(found | {"seed": args.seed}))
    return int(bool(found["n_false_alarms"] or found["missed"]))


if __name__ == "__main__":
    sys.exit(main())
