"""How many tokens a second the sidecar scores on one core, and what a request takes.

usage: OMP_NUM_THREADS=1 python -m tests.bench.scoring [--seconds 10] [--profile]

64 detectors over 3 hook points, on columns: 40 linear probes with five aggregators, 16
rules over two SAE features each, 4 Mahalanobis detectors of rank 8 and 4 MLP probes of
width 16. A step is what `Monitor.observe` is given: rows of 256 live requests, which
are finished and begun as they come. "decode" has a row for each; "mixed" has a row for
240, and 16 prompts of 128 tokens, as a busy server with chunked prefill has. Projection
is the model's, as in pushdown, and is not part of it.

Memory is what a live request adds, by tracemalloc, after 100 tokens; the ring of last
tokens, of a fixed size, is printed beside it.
"""

import argparse
import cProfile
import time
import tracemalloc
from dataclasses import dataclass, field

import numpy as np

from monitor.core import Monitor
from monitor.records import StepBatch
from probes.aggregate import (
    CUSUM,
    Aggregator,
    EMAMax,
    Max,
    Mean,
    SlidingMeanMax,
)
from probes.bank import ProjectionBank
from probes.calibration import fixed_thresholds
from probes.detector import Detector
from probes.linear import LinearProbe
from probes.mahalanobis import Mahalanobis
from probes.mlp import MLPProbe
from probes.sae import SAEFeatureDetector
from probes.sae_formats.record import SAE

D_MODEL = 64  # The model's work; the monitor sees columns only.
HOOK_POINTS = tuple(f"blocks.{layer}.hook_resid_post" for layer in (7, 15, 23))
N_LIVE = 256
ENDS_AT = 400
N_STEPS = 64
N_KEPT = 512

AGGREGATORS: tuple[Aggregator, ...] = (
    Max(),
    EMAMax(alpha=0.5),
    Mean(),
    SlidingMeanMax(window=16),
    CUSUM(drift=1.0),
)


def detectors(rng: np.random.Generator) -> list[Detector]:
    """64 detectors, spread over the hook points."""
    hook_points = [HOOK_POINTS[i % 3] for i in range(64)]

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    found: list[Detector] = [
        LinearProbe(
            name=f"linear-{i}",
            hook_point=hook_points[i],
            weight=drawn(D_MODEL),
            bias=0.0,
            aggregator=AGGREGATORS[i % len(AGGREGATORS)],
        )
        for i in range(40)
    ]
    for i in range(16):
        sae = SAE(
            W_enc=drawn(D_MODEL, 8),
            b_enc=drawn(8),
            activation="jumprelu",
            threshold=np.ones(8, dtype=np.float32),
            hook_points=(hook_points[i],),
            model_name="",
        )
        found.append(
            SAEFeatureDetector.from_sae(
                sae,
                name=f"sae-{i}",
                features=(1, 4),
                rule=("weighted_sum", "any", "all", "count")[i % 4],
                feature_weights=None,
                levels=None,
                aggregator=Max(),
            )
        )
    for i in range(4):
        found.append(
            Mahalanobis(
                name=f"mahalanobis-{i}",
                hook_point=hook_points[i],
                mean=drawn(D_MODEL),
                directions=np.eye(8, D_MODEL, dtype=np.float32),
                variances=np.ones(8, dtype=np.float32),
                residual_variance=1.0,
                aggregator=EMAMax(alpha=0.5),
            )
        )
        found.append(
            MLPProbe(
                name=f"mlp-{i}",
                hook_point=hook_points[i],
                weight=drawn(16, D_MODEL),
                bias=drawn(16),
                hidden_weights=drawn(1, 16, 16),
                hidden_biases=drawn(1, 16),
                out_weight=drawn(16),
                out_bias=0.0,
                aggregator=Max(),
            )
        )
    return found


@dataclass
class Traffic:
    """Steps of live requests, with columns that were drawn before the clock runs."""

    bank: ProjectionBank
    rng: np.random.Generator
    n_prompts: int
    n_prompt_tokens: int
    step: int = 0
    n_begun: int = 0
    live: dict[str, int] = field(default_factory=dict)

    def next(self) -> StepBatch:
        """The next step, one row of each live request, a whole prompt of a new one."""
        self.step += 1
        ended = tuple(name for name, n in self.live.items() if n >= ENDS_AT)
        for name in ended:
            del self.live[name]
        # Prompts come at a steady rate: the oldest make room for them.
        oldest = list(self.live)[: len(self.live) + self.n_prompts - N_LIVE]
        for name in oldest:
            del self.live[name]
        rows = dict.fromkeys(self.live, 1)
        while len(rows) < N_LIVE:
            self.n_begun += 1
            name = f"chatcmpl-{self.n_begun}"
            self.live[name] = 0
            rows[name] = self.n_prompt_tokens if self.n_prompts else 1
        firsts = np.array([self.live[name] for name in rows], dtype=np.int64)
        for name, n in rows.items():
            self.live[name] += n
        n_rows = sum(rows.values())
        x = self.rng.standard_normal((n_rows, D_MODEL)).astype(np.float32)
        columns, norms = self.bank.project(dict.fromkeys(HOOK_POINTS, x))
        return StepBatch(
            engine="engine",
            rank=0,
            step=self.step,
            bank_digest=self.bank.digest,
            columns=columns,
            activations={},
            squared_norms=norms,
            request_ids=tuple(rows),
            row_offsets=np.concatenate([[0], np.cumsum(list(rows.values()))]),
            first_positions=firsts,
            n_cached=np.zeros(len(rows), dtype=np.int64),
            n_prompt_tokens=np.full(len(rows), self.n_prompt_tokens, dtype=np.int64),
            token_ids=np.zeros(n_rows, dtype=np.int32),
            finished=(*ended, *oldest),
        )


def watching() -> tuple[Monitor, ProjectionBank]:
    """A monitor that flags nothing, so that scoring is all it does."""
    found = detectors(np.random.default_rng(0))
    bank = ProjectionBank.compile(found)
    never = fixed_thresholds({d.name: 1e30 for d in found})
    return Monitor(bank, found, never), bank


def speed(n_prompts: int, seconds: float) -> tuple[float, int]:
    """Tokens a second of CPU time, and tokens in a step."""
    monitor, bank = watching()
    traffic = Traffic(bank, np.random.default_rng(1), n_prompts, 128)
    n_tokens, spent = 0, 0.0
    while spent < seconds:
        batches = [traffic.next() for _ in range(N_STEPS)]
        began = time.process_time()
        for batch in batches:
            monitor.observe(batch)
            for name in batch.finished:
                monitor.finish("engine", name)
        spent += time.process_time() - began
        n_tokens += sum(len(batch.token_ids) for batch in batches)
    return n_tokens / spent, len(batches[-1].token_ids)


def memory() -> tuple[float, int]:
    """Bytes that a live request adds, and those of the ring and of the last steps."""
    monitor, bank = watching()
    rng = np.random.default_rng(2)
    n_requests = 16 * N_LIVE
    tracemalloc.start()
    # First with requests that end: the last steps then have all the room they may.
    for name in _observe(monitor, bank, rng, -n_requests, 0):
        monitor.finish("engine", name)
    before = tracemalloc.get_traced_memory()[0]
    _observe(monitor, bank, rng, 0, n_requests)
    added = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return added / n_requests, 2 * (64 << 20)


def _observe(
    monitor: Monitor,
    bank: ProjectionBank,
    rng: np.random.Generator,
    begin: int,
    end: int,
) -> list[str]:
    """Show requests of 100 tokens, numbered from *begin*; return their names."""
    seen: list[str] = []
    for first in range(begin, end, N_LIVE):
        names = tuple(f"chatcmpl-{first + i}" for i in range(N_LIVE))
        seen += names
        x = rng.standard_normal((100 * N_LIVE, D_MODEL)).astype(np.float32)
        columns, norms = bank.project(dict.fromkeys(HOOK_POINTS, x))
        monitor.observe(
            StepBatch(
                engine="engine",
                rank=0,
                step=1 + first + 16 * N_LIVE,
                bank_digest=bank.digest,
                columns=columns,
                activations={},
                squared_norms=norms,
                request_ids=names,
                row_offsets=np.arange(N_LIVE + 1) * 100,
                first_positions=np.zeros(N_LIVE, dtype=np.int64),
                n_cached=np.zeros(N_LIVE, dtype=np.int64),
                n_prompt_tokens=np.full(N_LIVE, 50),
                token_ids=np.zeros(100 * N_LIVE, dtype=np.int32),
            )
        )
        del x, columns, norms
    return seen


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.profile:
        profile = cProfile.Profile()
        profile.runcall(speed, 0, args.seconds)
        profile.print_stats("tottime")
        return
    for name, n_prompts in (("decode", 0), ("mixed", 16)):
        rate, n_tokens = speed(n_prompts, args.seconds)
        print(f"{name:<8} {n_tokens:>6} tokens a step   {rate:>10,.0f} tokens/s")
    per_request, ring = memory()
    print(f"memory   {per_request:,.0f} B a live request; ring {ring / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
