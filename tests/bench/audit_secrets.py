"""
Whether what prompts say can be found on disk, in logs or in metrics.

usage: python -m tests.bench.audit_secrets [--secrets 1000] [--seed 0]

For every setting of audit.keep a real daemon is sent flagged requests whose tokens are
secrets. While it runs, and again after each request was erased, every file of the
record's folder (with its WAL), the daemon's log and /metrics are searched for each
secret: its token ids as bytes and as numbers, their plain SHA-256, and its text. Prints
one JSON line.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from monitor.records import StepBatch
from service.daemon.audit.kept import KEEP
from service.daemon.audit.reader import AuditReader
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import ENGINE, Rows, batch, loud
from tests.service.builders import Client, Place, RunningDaemon, place

_N_TOKENS = 8
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """The tokens of a prompt; *forms* are what would give them away."""

    request_id: str
    token_ids: NDArray[np.int32]
    text: str

    @property
    def forms(self) -> list[bytes]:
        """All that is searched for."""
        raw = self.token_ids.astype("<i4").tobytes()
        numbers = [str(i) for i in self.token_ids.tolist()]
        digest = sha256(raw)
        return [
            raw,
            self.token_ids.astype("<i8").tobytes(),
            ", ".join(numbers).encode(),
            ",".join(numbers).encode(),
            digest.digest(),
            digest.hexdigest().encode(),
            self.text.encode(),
            # Each of its words, in whatever order and form they were kept.
            *(word.encode() for word in self.text.split()),
        ]


def make_secrets(n: int, rng: random.Random) -> tuple[list[Secret], dict[str, int]]:
    """Return *n* secrets, and the vocabulary that all their words are in."""
    vocabulary: dict[str, int] = {}
    secrets = []
    for i in range(n):
        words = ["".join(rng.choices(_ALPHABET, k=12)) for _ in range(_N_TOKENS)]
        for word in words:
            vocabulary[word] = 100_000 + len(vocabulary)
        secrets.append(
            Secret(
                request_id=f"request-{i}",
                token_ids=np.array([vocabulary[w] for w in words], dtype=np.int32),
                text=" ".join(words),
            )
        )
    return secrets, vocabulary


def batch_of(secret: Secret, step: int) -> StepBatch:
    """A step in which the whole request is scored, flagged, and ends."""
    rows = Rows(secret.request_id, 0, [loud(0)] * _N_TOKENS)
    made = batch(rows, step=step, finished=(secret.request_id,))
    made.token_ids[:] = secret.token_ids
    return made


def found_in(places: Iterable[bytes], secrets: list[Secret]) -> int:
    """Return how many of *secrets* are in one of *places*, in any form."""
    whole = b"\n".join(places)
    return sum(any(form in whole for form in secret.forms) for secret in secrets)


def everything(daemon: RunningDaemon) -> list[bytes]:
    """Return what an intruder would read."""
    folder = daemon.place.folder / "audit"
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return [*files, "".join(daemon.log).encode(), daemon.get().encode()]


def configure(where: Place, keep: str, vocabulary: dict[str, int]) -> None:
    """Have the daemon keep that, and know the words."""
    text = f'directory = "audit"\nkeep = "{keep}"'
    if keep == "text":
        tokenizer = Tokenizer(WordLevel(vocab=vocabulary, unk_token=""))
        tokenizer.save(str(where.folder / "tokenizer.json"))
        text += '\ntokenizer = "tokenizer.json"'
    where.configure(audit=text)


def readable(folder: Path, secrets: list[Secret]) -> int:
    """Return of how many secrets the daemon's owner can read the tokens."""
    reader, n = AuditReader(folder), 0
    for secret in secrets:
        found = reader.request(ENGINE, secret.request_id)
        if found is not None:
            raw = secret.token_ids.astype("<i4").tobytes()
            n += found.token_ids == raw
    return n


def measure(keep: str, n_secrets: int, seed: int) -> dict[str, int]:
    """Plant, search, erase and search again."""
    secrets, vocabulary = make_secrets(n_secrets, random.Random(seed))
    with place() as where:
        configure(where, keep, vocabulary)
        with RunningDaemon(where) as daemon, Client(where.address) as client:
            client.hello()
            for step, secret in enumerate(secrets, 1):
                client.send(batch_of(secret, step))
            for _ in secrets:
                client.answer()
            folder = where.folder / "audit"
            counts = {
                "n_flagged": len(AuditReader(folder).flags(limit=1 << 30)),
                "n_readable": readable(folder, secrets),
                "n_found": found_in(everything(daemon), secrets),
            }
            for secret in secrets:
                client.audit.Erase(pb.EraseRequest(request_id=secret.request_id))
            counts["n_readable_erased"] = readable(folder, secrets)
            counts["n_found_erased"] = found_in(everything(daemon), secrets)
            daemon.stop()
    return counts


def main() -> int:
    """Measure every setting; 0 if nothing is found where nothing may be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--secrets", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = {keep: measure(keep, args.secrets, args.seed) for keep in KEEP}
    print(json.dumps(vars(args) | found))
    is_bad = any(
        one["n_found"] or one["n_found_erased"] or one["n_readable_erased"]
        for one in found.values()
    )
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
