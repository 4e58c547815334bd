"""Whether every position of a run was judged, and by the right numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
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


def make_probes() -> list[LinearProbe]:
    """Return random probes of the organism, *N_PROBES* at each hook point."""
    rng = np.random.default_rng(0)
    d_model = json.loads((ORGANISM / "config.json").read_text())["hidden_size"]
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


def watching(probes: list[LinearProbe]) -> Monitor:
    """Return a monitor of *probes*, which flag everything."""
    return Monitor(
        ProjectionBank.compile(probes),
        probes,
        fixed_thresholds({probe.name: _ALWAYS for probe in probes}),
        max_shadow_bytes=64 << 20,
        shadow_seed=1,
    )


def watch_all(watch: Monitor, run: EngineRun) -> dict[str, RequestSummary]:
    """Let *watch* see what *run* sent; return its summaries by the answers' names."""
    summaries: dict[str, RequestSummary] = {}
    for batch in run.steps():
        watch.observe(batch)
        for _, summary in watch.end(batch.engine, batch.finished):
            summaries[summary.request_id.rsplit("-", 1)[0]] = summary
    assert watch.totals.tokens.is_balanced
    return summaries


def worst_scores(
    run: EngineRun,
    found: dict[str, RequestSummary],
    probes: list[LinearProbe],
    model: Path = ORGANISM,
) -> dict[str, float]:
    """
    Return, by answer, how far its scores are from those of Hugging Face's *model*.

    Relative to the answer's largest score; of tokens that have any.
    """
    sequences = {name: run.sequence(name) for name in found}
    expected = _scores(sequences, probes, model)
    worst = dict.fromkeys(found, 0.0)
    for name, summary in found.items():
        for probe in probes:
            own, scores = expected[name][probe.name], summary.scores.get(probe.name)
            if scores is not None and len(scores):
                n = min(len(own), len(scores))
                difference = np.nanmax(np.abs(scores[:n] - own[:n]), initial=0.0)
                relative = float(difference / np.abs(own).max())
                worst[name] = max(worst[name], relative)
    return worst


def cover(run: EngineRun, probes: list[LinearProbe]) -> Coverage:
    """Let a monitor watch what *run* sent, and hold it against Hugging Face's model."""
    summaries = watch_all(watching(probes), run)
    names = [name for name in run.tokens if not run.is_aborted(name)]
    sequences = {name: run.sequence(name) for name in names}
    found = {name: summaries[name] for name in names}
    n_more = {
        name: s.n_tokens_scored + s.n_tokens_shadowed - len(sequences[name])
        for name, s in found.items()
    }
    n_wrong = 0
    for name, summary in found.items():
        n = min(len(sequences[name]), len(summary.token_ids))
        wrong = summary.token_ids[:n] != np.array(sequences[name][:n])
        n_wrong += int(wrong.sum())
    return Coverage(
        n_requests=len(names),
        n_positions=sum(len(sequences[name]) for name in names),
        n_scored=sum(s.n_tokens_scored for s in found.values()),
        n_shadowed=sum(s.n_tokens_shadowed for s in found.values()),
        n_lost=sum(sum(s.n_tokens_lost.values()) for s in found.values()),
        n_missing=sum(max(0, -n) for n in n_more.values()),
        n_beyond=sum(max(0, n) for n in n_more.values()),
        n_wrong_token=n_wrong,
        worst=max(worst_scores(run, found, probes).values()),
    )


def _scores(
    sequences: dict[str, list[int]], probes: list[LinearProbe], model: Path
) -> dict[str, dict[str, NDArray[np.float32]]]:
    scores: dict[str, dict[str, NDArray[np.float32]]] = {n: {} for n in sequences}
    for hook_point in HOOK_POINTS:
        layer = int(hook_point.split(".")[1])
        reference = reference_activations(model, sequences, layer)
        for probe in probes:
            if probe.hook_point == hook_point:
                for name, activations in reference.items():
                    scores[name][probe.name] = activations @ probe.weight + probe.bias
    return scores
