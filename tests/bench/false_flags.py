"""The realised rate of falsely flagged requests, against the one that is promised.

usage: python -m tests.bench.false_flags [--repetitions 200] [--benign 2000]
           [--budget learnt] [--guarantee marginal] [--seed 0] [--json FILE]

Ten detectors with ten aggregators, alpha 1 % over all of them together. The evidence of
a token is a stationary AR(1) with coefficient 0.8, plus an offset that a request keeps,
half of it shared by the detectors: tokens are far from independent. Lengths are drawn
from 8 to 4096 tokens, each octave as often as another.

A repetition calibrates on benign requests, then counts the flagged ones among 2,000
others, which come in steps that are cut at random. Beside it the rule that most deploy:
each detector's token threshold at its share of alpha, flag any. The interval of a
rate is of its mean over the repetitions (Student's t), since requests that were held
against one calibration are not independent.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import t as student
from tqdm import tqdm

from probes.aggregate import (
    CUSUM,
    Aggregator,
    EMAMax,
    Last,
    Max,
    Mean,
    RollingMeanMax,
    SlidingMeanMax,
    SoftmaxMean,
    TopKMean,
)
from probes.arrays import Float32, Int64
from probes.calibration import Calibration, Peaks
from probes.evidence import Evidence
from probes.fit.calibrate import calibrate
from probes.fit.plan_calibration import CalibrationPlan
from probes.fit.trajectories import Trajectories, follow, length_grid
from probes.linear import LinearProbe

ALPHA, RHO = 0.01, 0.8
SHORTEST, LONGEST = 8, 4096
N_TESTED = 2000
OCTAVES = np.array([16, 32, 64, 128, 256, 512, 1024, 2048, 4096])

AGGREGATORS: tuple[Aggregator, ...] = (
    Max(),
    EMAMax(alpha=0.5),
    EMAMax(alpha=0.1),
    SlidingMeanMax(window=16),
    RollingMeanMax(window=10),
    Mean(),
    Last(),
    SoftmaxMean(temperature=1.0),
    TopKMean(k=8),
    CUSUM(drift=1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Shares of requests that were flagged, one a repetition: in all, by octave."""

    overall: list[float]
    by_octave: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Benign requests: lengths (n,), and evidence of each detector (n_rows, 1)."""

    n_tokens: Int64
    evidence: list[Float32]


def draw(rng: np.random.Generator, n: int) -> Requests:
    """Draw *n* benign requests."""
    exponents = rng.uniform(np.log2(SHORTEST), np.log2(LONGEST), n)
    n_tokens = np.exp2(exponents).round().astype(np.int64)
    offsets = np.concatenate([[0], n_tokens.cumsum()])
    shared = rng.standard_normal(n)
    evidence = []
    for _ in AGGREGATORS:
        # One long series; where a request begins it is drawn anew.
        noise = rng.standard_normal(offsets[-1]) * np.sqrt(1 - RHO**2)
        noise[offsets[:-1]] = rng.standard_normal(n)
        series = np.empty(offsets[-1])
        for start, stop in pairwise(offsets):
            series[start:stop] = lfilter([1.0], [1.0, -RHO], noise[start:stop])
        own = (shared + rng.standard_normal(n)) / np.sqrt(2)
        values = series + np.repeat(own, n_tokens)
        evidence.append(values.astype(np.float32)[:, None])
    return Requests(n_tokens=n_tokens, evidence=evidence)


def detectors() -> list[LinearProbe]:
    """Ten probes; only their aggregators matter here."""
    return [
        LinearProbe(
            name=f"{index}-{aggregator.name}",
            hook_point="blocks.0.hook_resid_post",
            weight=np.ones(1, dtype=np.float32),
            bias=0.0,
            aggregator=aggregator,
        )
        for index, aggregator in enumerate(AGGREGATORS)
    ]


def fit(benign: Requests, plan: CalibrationPlan) -> Calibration:
    """Calibrate on *benign*."""
    grid = length_grid(int(benign.n_tokens.max()))
    everywhere = np.ones(len(benign.evidence[0]), dtype=np.bool_)
    probes = detectors()
    return calibrate(
        Trajectories(
            grid=grid,
            n_tokens=benign.n_tokens,
            statistics=follow(
                probes,
                Evidence.of(probes, benign.evidence),
                benign.n_tokens,
                everywhere,
                grid,
            ),
            is_monotone=np.array([p.aggregator.is_monotone for p in probes]),
        ),
        [p.name for p in probes],
        plan,
        "drawn",
    )


def flagged(
    tested: Requests, calibration: Calibration, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which of *tested* are flagged, on the way or at their end."""
    n = len(tested.n_tokens)
    first_rows = tested.n_tokens.cumsum() - tested.n_tokens
    cuts = np.sort(rng.uniform(0, 1, (n, 3)), axis=1) * tested.n_tokens[:, None]
    ends = np.column_stack([cuts.astype(np.int64), tested.n_tokens])
    probes = detectors()
    peaks = Peaks(probes, calibration, n_slots=n)
    slots = np.array([peaks.take() for _ in range(n)])
    is_flagged = np.zeros(n, dtype=np.bool_)
    before = np.zeros(n, dtype=np.int64)
    for end in ends.T:
        lengths = end - before
        offsets = np.concatenate([[0], lengths.cumsum()])
        rows = np.repeat(first_rows + before - offsets[:-1], lengths)
        rows = rows + np.arange(offsets[-1])
        step = Evidence.of(probes, [one[rows] for one in tested.evidence])
        peaks.update(slots, step, offsets, np.ones(len(rows), dtype=np.bool_))
        is_flagged |= peaks.crossed_running(slots).any(axis=1)
        before = end
    at_end = [peaks.crossed_at_end(slot).any() for slot in slots]
    return is_flagged | np.array(at_end)


def flagged_by_tokens(benign: Requests, tested: Requests) -> NDArray[np.bool_]:
    """Which of *tested* the per-token rule flags."""
    is_flagged = np.zeros(len(tested.n_tokens), dtype=np.bool_)
    first_rows = tested.n_tokens.cumsum() - tested.n_tokens
    for known, new in zip(benign.evidence, tested.evidence, strict=True):
        threshold = np.quantile(known, 1 - ALPHA / len(AGGREGATORS))
        is_flagged |= np.maximum.reduceat(new[:, 0], first_rows) > threshold
    return is_flagged


def run(
    repetitions: int, n_benign: int, plan: CalibrationPlan, *, is_shown: bool = True
) -> dict[str, Rates]:
    """Repeat, and return the rates of both rules."""
    rates = {
        rule: Rates(overall=[], by_octave=[[] for _ in OCTAVES])
        for rule in ("request", "token")
    }
    for repetition in tqdm(range(repetitions), disable=not is_shown):
        rng = np.random.default_rng([plan.seed, repetition])
        benign, tested = draw(rng, n_benign), draw(rng, N_TESTED)
        octaves = np.searchsorted(OCTAVES, tested.n_tokens)
        found = {
            "request": flagged(tested, fit(benign, plan), rng),
            "token": flagged_by_tokens(benign, tested),
        }
        for rule, is_flagged in found.items():
            rates[rule].overall.append(float(is_flagged.mean()))
            for k, by_octave in enumerate(rates[rule].by_octave):
                by_octave.append(float(is_flagged[octaves == k].mean()))
    return rates


def interval(rates: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval over repetitions."""
    mean, n = float(np.mean(rates)), len(rates)
    half = float(student.ppf(0.975, n - 1) * np.std(rates, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def main() -> None:
    """Run, and print both rules beside each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--benign", type=int, default=2000)
    parser.add_argument("--budget", choices=("learnt", "even"), default="learnt")
    parser.add_argument("--guarantee", choices=("marginal", "pac"), default="marginal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    plan = CalibrationPlan(
        alpha=ALPHA,
        budget=args.budget,
        guarantee=args.guarantee,
        seed=args.seed,
        check_share=0.1,
    )
    rates = run(args.repetitions, args.benign, plan)
    print(f"{'tokens':>12}{'promised':>10}   {'requests':^26}   {'per token':^26}")
    rows = [("all", {rule: r.overall for rule, r in rates.items()})]
    shortest = SHORTEST
    for k, longest in enumerate(OCTAVES.tolist()):
        by_rule = {rule: r.by_octave[k] for rule, r in rates.items()}
        rows.append((f"{shortest}-{longest}", by_rule))
        shortest = longest + 1
    for name, by_rule in rows:
        cells = []
        for rule in ("request", "token"):
            mean, low, high = interval(by_rule[rule])
            cells.append(f"{mean:7.3%} ({low:7.3%} to {high:7.3%})")
        print(f"{name:>12}{ALPHA:>10.1%}   {cells[0]}   {cells[1]}")
    if args.json:
        args.json.write_text(json.dumps({k: asdict(v) for k, v in rates.items()}))


if __name__ == "__main__":
    main()
