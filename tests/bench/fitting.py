"""What fitting many probes on a data set larger than memory costs.

usage: python tests/bench/fitting.py [--tokens N] [--width D] [--probes K] [--full]

Writes a data set with a planted direction a probe, fits mass-mean, LDA and logistic
probes in passes over it, and prints peak memory and time as JSON. Run again on the
same --work after an interruption, it goes on. --full is 10^6 tokens of width 4096,
16 GB on disk. Memory is bounded whatever the data set: `probes.fit.streamed`.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from probes import Dataset, DatasetWriter, Max, ModelIdentity, load_dataset
from probes.arrays import Float32
from probes.fit.logistic import LogisticOptions
from probes.fit.select import Selector, select_requests
from probes.fit.streamed import StreamTask, fit_streamed

HOOK_POINT = "blocks.15.hook_resid_post"
TOKENS_A_REQUEST = 500
KINDS = ("mass_mean", "lda", "logistic")
SHARE_POSITIVE = 0.1
SPARE_BYTES = 20 << 30


def main() -> None:
    """Generate, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--passes", type=int, default=100, help="of the regressions")
    parser.add_argument("--full", action="store_true", help="10^6 x 4096")
    parser.add_argument(
        "--work", type=Path, help="kept; a temporary folder if not given"
    )
    args = parser.parse_args()
    if args.full:
        args.tokens, args.width = 1_000_000, 4096
    if args.work is not None:
        print(json.dumps(measure(args.work, args), indent=2))
        return
    with tempfile.TemporaryDirectory(prefix="fitting-") as folder:
        print(json.dumps(measure(Path(folder), args), indent=2))


def measure(work: Path, args: argparse.Namespace) -> dict[str, object]:
    """Peak memory in MiB, seconds, and how near the planted directions are."""
    directions = planted(args.probes, args.width)
    begun = time.monotonic()
    if not (work / "data" / "dataset.json").exists():
        need = 4 * args.tokens * args.width + SPARE_BYTES
        work.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(work).free < need:
            raise SystemExit(f"{work}: expected {need >> 30} GiB free, found fewer")
        write(work / "data", args.tokens, directions)
    dataset = load_dataset(work / "data")
    written = time.monotonic()
    before = peak_mib()
    made = fit_streamed(
        dataset,
        tasks(dataset, args.probes),
        work=work / "state",
        max_passes=args.passes,
        progress=Shown(),
    )
    cosines: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index, detector in enumerate(made.values()):
        weight = detector.projections[0].weight[0]
        cosine = float(weight @ directions[index] / np.linalg.norm(weight))
        cosines[KINDS[index % len(KINDS)]].append(cosine)
    return {
        "n_tokens": len(dataset.positions),
        "d_model": args.width,
        "n_probes": args.probes,
        "data_gib": round(4 * len(dataset.positions) * args.width / 2**30, 2),
        "writing_seconds": round(written - begun, 1),
        "fitting_seconds": round(time.monotonic() - written, 1),
        "peak_mib_before_fitting": before,
        "peak_mib": peak_mib(),
        "lowest_cosine_with_planted": {
            kind: round(min(found), 4) for kind, found in cosines.items() if found
        },
    }


def planted(n_probes: int, width: int) -> Float32:
    """Unit directions, (n_probes, width)."""
    found = np.random.default_rng(7).normal(size=(n_probes, width))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32)


def write(path: Path, n_tokens: int, directions: Float32) -> None:
    """Normal tokens; a tenth of the requests move along each direction."""
    rng = np.random.default_rng(8)
    n_probes, width = directions.shape
    identity = ModelIdentity(
        model="synthetic",
        config_sha256="c" * 64,
        weights_sha256="a" * 64,
        tokenizer_sha256="7" * 64,
        d_model=width,
        n_layers=16,
        dtype="float32",
    )
    with DatasetWriter(path, identity, [HOOK_POINT], width) as writer:
        for index, first in enumerate(range(0, n_tokens, TOKENS_A_REQUEST)):
            n = min(TOKENS_A_REQUEST, n_tokens - first)
            shows = np.flatnonzero(rng.random(n_probes) < SHARE_POSITIVE).tolist()
            rows = rng.standard_normal((n, width), dtype=np.float32)
            rows += directions[shows].sum(axis=0)
            writer.append(
                f"request-{index}",
                {HOOK_POINT: rows},
                np.zeros(n, dtype=np.int32),
                np.arange(n, dtype=np.int32),
                n_prompt_tokens=n // 2,
                labels={f"shows-{k}": k in shows for k in range(n_probes)},
            )


def tasks(dataset: Dataset, n_probes: int) -> list[StreamTask]:
    """A probe a label, the kinds in turn, each against all other requests."""
    bags = [
        np.arange(request.first_row, request.first_row + request.n_rows)
        for request in dataset.requests
    ]
    return [
        StreamTask(
            name=f"probe-{k}",
            kind=KINDS[k % len(KINDS)],
            hook_points=(HOOK_POINT,),
            positive=tuple(bags[i] for i in select_requests(dataset, shows(k))),
            negative=tuple(
                bags[i] for i in select_requests(dataset, shows(k), is_negated=True)
            ),
            aggregator=Max(),
            logistic=LogisticOptions(rounds=1),
        )
        for k in range(n_probes)
    ]


def shows(k: int) -> Selector:
    """The requests that move along direction *k*."""
    return Selector(label=f"shows-{k}", equals=True)


class Shown:
    """A line on standard error for every tenth of a pass."""

    def __init__(self) -> None:
        self._last = ("", -1)

    def __call__(self, done: int, total: int, text: str) -> None:
        tenth = (text, 10 * done // total)
        if tenth != self._last:
            self._last = tenth
            print(f"{text}: {tenth[1]}0 %, peak {peak_mib()} MiB", file=sys.stderr)


def peak_mib() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main()
