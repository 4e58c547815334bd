"""Banks swapped while requests run: every row is of the bank that its batch names.

Each time the plugin says hello it is given the other of two banks, and its first
streams are ended after a few batches, so that it says hello again while requests run.
Nothing is lost by that, and no row may hold columns of both. See run.py.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc

from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.e2e.engines import ORGANISM, Recorder, make_bank, run_engine
from tests.e2e.test_rows import compare_run
from tests.gpu.finding import Finding, save
from tests.gpu.rows import BARS, arguments, worst_distance

DTYPE = "float32"
N_ENDED = 3
EVERY = 8


class SwappingRecorder(Recorder):
    """Hands out its banks in turn; `N_ENDED` streams end after `EVERY` batches."""

    def __init__(self, banks: list[pb.Bank]) -> None:
        super().__init__(banks[0])
        self.banks = banks

    def Hello(  # noqa: N802 - gRPC's spelling
        self, request: pb.HelloRequest, context: grpc.ServicerContext
    ) -> pb.HelloResponse:
        self.bank = self.banks[len(self.hellos) % len(self.banks)]
        return super().Hello(request, context)

    def Stream(  # noqa: N802 - gRPC's spelling
        self,
        request_iterator: Iterator[pb.StreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamResponse]:
        last = len(self.batches) + EVERY
        for response in super().Stream(request_iterator, context):
            yield response
            if len(self.batches) >= last and len(self.hellos) <= N_ENDED:
                return


def main() -> None:
    """Run one engine, and compare each bank's rows with the reference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--runner", choices=("1", "2"), default="2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    d_model = json.loads((ORGANISM / "config.json").read_text())["hidden_size"]
    other = make_bank(d_model, seed=1)
    other.digest = "other-bank"
    banks = {bank.digest: bank for bank in (make_bank(d_model), other)}
    recorder = SwappingRecorder(list(banks.values()))
    with tempfile.TemporaryDirectory(prefix="innerwatch-") as folder:
        run = run_engine(
            Path(folder) / "run",
            mode="pushdown",
            n_requests=64 if args.tiny else 400,
            most_generated=24,
            recorder=recorder,
            **arguments(args.device, args.runner, DTYPE),
        )
    seen = [b.bank_digest for b in run.batches if b.columns]
    n_swaps = sum(a != b for a, b in itertools.pairwise(seen))
    counted = compare_run(dataclasses.replace(run, bank=banks[seen[0]]), 0)
    # A batch that was not acknowledged when the stream ended came again.
    wrong = counted.n_missing, counted.n_unasked, counted.n_wrong_token
    worst = max(
        worst_distance(dataclasses.replace(run, bank=banks[digest]), site, digest)
        for digest in set(seen)
        for site in (0, 1)
    )
    bar = BARS[DTYPE]
    save(
        args.out,
        [
            Finding(
                part=f"swap-v{args.runner}",
                what=f"{n_swaps} swaps of the bank between steps",
                found=f"{counted.n_rows} rows; missing, unasked, other token: {wrong}; "
                f"{sum(g.n_tokens for g in run.gaps)} lost; worst {worst:.1e} of the "
                f"norm, against the bank that the batch names",
                bar=f"at least 1; 0, 0, 0; 0; {bar:g}",
                is_met=n_swaps >= 1
                and wrong == (0, 0, 0)
                and not run.gaps
                and worst <= bar,
            )
        ],
    )


if __name__ == "__main__":
    main()
