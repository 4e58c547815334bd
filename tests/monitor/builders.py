"""A small detector set, and batches whose scores are known by looking at them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from monitor.core import Monitor
from monitor.records import StepBatch
from probes.aggregate import Aggregator, EMAMax, Max, Mean
from probes.bank import ProjectionBank
from probes.calibration import Calibration, fixed_thresholds
from probes.linear import LinearProbe

D_MODEL = 4
EARLY, LATE = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"
ENGINE = "engine-1"
THRESHOLD = 2.0


def probe(name: str, hook_point: str, axis: int, aggregator: Aggregator) -> LinearProbe:
    """A probe whose evidence is the activation's value along *axis*."""
    return LinearProbe(
        name=name,
        hook_point=hook_point,
        weight=np.eye(D_MODEL, dtype=np.float32)[axis],
        bias=0.0,
        aggregator=aggregator,
    )


def detectors() -> list[LinearProbe]:
    """Max of axis 0, EMA of axis 1 and mean of axis 2; the mean reads later."""
    return [
        probe("max", EARLY, 0, Max()),
        probe("ema", EARLY, 1, EMAMax(alpha=0.5)),
        probe("mean", LATE, 2, Mean()),
    ]


def calibration(
    threshold: float = THRESHOLD, names: Iterable[str] = ("max", "ema", "mean")
) -> Calibration:
    """One threshold for each, set by hand."""
    return fixed_thresholds(dict.fromkeys(names, threshold))


def bank() -> ProjectionBank:
    """The bank of `detectors`."""
    return ProjectionBank.compile(detectors())


def monitor(
    threshold: float = THRESHOLD,
    max_live_requests: int = 1000,
    max_positions: int = 1 << 16,
    max_shadow_bytes: int = 0,
) -> Monitor:
    """A monitor of `detectors`, all with one threshold."""
    return Monitor(
        bank(),
        detectors(),
        calibration(threshold),
        max_live_requests=max_live_requests,
        max_positions=max_positions,
        max_shadow_bytes=max_shadow_bytes,
        shadow_seed=7,
    )


@dataclass(frozen=True)
class Rows:
    """Rows of one request; each row of *values* is the activation at both places."""

    request_id: str
    first_position: int
    values: list[list[float]] = field(default_factory=list)
    n_cached: int = 0
    n_prompt_tokens: int = 1


def quiet(n_rows: int) -> list[list[float]]:
    """Activations that no detector minds."""
    return [[0.5, 0.25, 0.125, 0.0]] * n_rows


def loud(axis: int, value: float = 10.0) -> list[float]:
    """An activation that the detector of *axis* flags."""
    return [value if i == axis else 0.0 for i in range(D_MODEL)]


def batch(
    *rows: Rows,
    step: int = 1,
    engine: str = ENGINE,
    finished: tuple[str, ...] = (),
    holds_activations: bool = False,
) -> StepBatch:
    """A step of *rows*, projected with `bank` unless it is to hold activations."""
    values = [value for request in rows for value in request.values]
    activations = np.array(values, dtype=np.float32).reshape(-1, D_MODEL)
    everywhere = {EARLY: activations, LATE: activations}
    columns, norms = bank().project(everywhere)
    n_rows_each = [len(request.values) for request in rows]
    return StepBatch(
        engine=engine,
        rank=0,
        step=step,
        bank_digest="" if holds_activations else bank().digest,
        columns={} if holds_activations else columns,
        activations=everywhere if holds_activations else {},
        squared_norms=norms,
        request_ids=tuple(request.request_id for request in rows),
        row_offsets=_integers([0, *n_rows_each]).cumsum(),
        first_positions=_integers([request.first_position for request in rows]),
        n_cached=_integers([request.n_cached for request in rows]),
        n_prompt_tokens=_integers([request.n_prompt_tokens for request in rows]),
        token_ids=np.arange(sum(n_rows_each), dtype=np.int32) + 100,
        finished=finished,
    )


def with_norms(batch: StepBatch, rows: list[int], norm: float) -> StepBatch:
    """The batch with the squared norms of *rows* at the late hook point replaced."""
    norms = batch.squared_norms[LATE].copy()
    norms[rows] = norm
    return replace(batch, squared_norms={**batch.squared_norms, LATE: norms})


def _integers(numbers: list[int]) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)
