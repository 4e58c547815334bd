"""Whether every position of a run was judged, and by the right numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.core import Monitor
from monitor.records import RequestSummary
from probes.aggregate import Max
from probes.bank import ProjectionBank
from probes.calibration import fixed_thresholds
from probes.linear import LinearProbe
from tests.e2e.engines import HOOK_POINTS, ORGANISM, EngineRun
from tests.e2e.rows import reference_activations

N_PROBES = 3
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
"""vLLM's speculative decoding that looks drafts up in the prompt."""

_ALWAYS = -1e30
"""A threshold that every request is above: the record of a flag holds its scores."""


def make_probes(d_model: int) -> list[LinearProbe]:
    """Return random probes that flag everything, *N_PROBES* at each hook point."""
    rng = np.random.default_rng(0)
    return [
        LinearProbe(
            name=f"probe-{site}-{i}",
            hook_point=hook_point,
            weight=rng.standard_normal(d_model).astype(np.float32),
            bias=0.5,
            aggregator=Max(),
        )
        for site, hook_point in enumerate(HOOK_POINTS)
        for i in range(N_PROBES)
    ]


def make_shared_requests(n: int, n_shared: int, seed: int) -> list[dict[str, Any]]:
    """
    Return *n* requests that start with the same *n_shared* tokens.

    Every eighth is aborted on the way, every fifth wants three answers, every third
    may go on for longer than the shared tokens are, and every seventh may stop early.
    """
    rng = np.random.default_rng(seed)
    shared = rng.integers(5, 500, n_shared).tolist()
    stops = rng.integers(5, 500, 50).tolist()
    return [
        {
            "request_id": f"r{i}",
            "prompt": shared + rng.integers(5, 500, int(rng.integers(1, 60))).tolist(),
            "n_generate": int(rng.integers(1, 120 if i % 3 == 0 else 8)),
            "abort_at_step": 3 * i + 20 if i % 8 == 3 else None,
            "n": 3 if i % 5 == 2 else 1,
            "stop_token_ids": stops if i % 7 == 1 else [],
        }
        for i in range(n)
    ]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """
    Counts of token positions of requests that were not aborted.

    *worst* is the largest difference of a score from the reference's, relative to the
    largest score of its request.
    """

    n_requests: int
    n_positions: int
    n_scored: int
    n_shadowed: int
    n_lost: int
    n_missing: int
    n_beyond: int
    n_wrong_token: int
    worst: float


def cover(run: EngineRun, probes: list[LinearProbe]) -> Coverage:
    """Let a monitor watch what *run* sent, and hold it against Hugging Face's model."""
    watch = Monitor(
        ProjectionBank.compile(probes),
        probes,
        fixed_thresholds({probe.name: _ALWAYS for probe in probes}),
        max_shadow_bytes=64 << 20,
        shadow_seed=1,
    )
    summaries: dict[str, RequestSummary] = {}
    for batch in run.batches:
        watch.observe(batch)
        for _, summary in watch.end(batch.engine, batch.finished):
            summaries[summary.request_id.rsplit("-", 1)[0]] = summary
    assert watch.totals.tokens.is_balanced
    names = [name for name in run.tokens if not run.is_aborted(name)]
    sequences = {name: run.sequence(name) for name in names}
    expected = _scores(sequences, probes)
    found = [summaries[name] for name in names]
    n_seen = [s.n_tokens_scored + s.n_tokens_shadowed for s in found]
    n_positions = [len(sequences[name]) for name in names]
    n_wrong, worst = 0, 0.0
    for name, summary in zip(names, found, strict=True):
        n = min(len(sequences[name]), len(summary.token_ids))
        wrong = summary.token_ids[:n] != np.array(sequences[name][:n])
        n_wrong += int(wrong.sum())
        for probe in probes:
            own = expected[name][probe.name]
            difference = np.abs(summary.scores[probe.name][:n] - own[:n])
            worst = max(worst, float(difference.max() / np.abs(own).max()))
    short = [max(0, n - s) for n, s in zip(n_positions, n_seen, strict=True)]
    beyond = [max(0, s - n) for n, s in zip(n_positions, n_seen, strict=True)]
    return Coverage(
        n_requests=len(names),
        n_positions=sum(n_positions),
        n_scored=sum(s.n_tokens_scored for s in found),
        n_shadowed=sum(s.n_tokens_shadowed for s in found),
        n_lost=sum(sum(s.n_tokens_lost.values()) for s in found),
        n_missing=sum(short),
        n_beyond=sum(beyond),
        n_wrong_token=n_wrong,
        worst=worst,
    )


def _scores(
    sequences: dict[str, list[int]], probes: list[LinearProbe]
) -> dict[str, dict[str, NDArray[np.float32]]]:
    scores: dict[str, dict[str, NDArray[np.float32]]] = {n: {} for n in sequences}
    for hook_point in HOOK_POINTS:
        layer = int(hook_point.split(".")[1])
        reference = reference_activations(ORGANISM, sequences, layer)
        for probe in probes:
            if probe.hook_point == hook_point:
                for name, activations in reference.items():
                    scores[name][probe.name] = activations @ probe.weight + probe.bias
    return scores
