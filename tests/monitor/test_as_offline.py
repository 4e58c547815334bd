# ruff: noqa: E402 - calibration is imported once scikit-learn and SciPy are there.
"""The monitor says of a request what calibration said of its like."""

import numpy as np
import pytest

from tests.probes.builders import require_sklearn

require_sklearn()

from monitor.core import Monitor
from probes.aggregate import EMAMax, Max, Mean, is_answer
from probes.arrays import Float32
from probes.bank import ProjectionBank
from probes.evidence import Scorer
from probes.fit.calibrate import calibrate
from probes.fit.judge import judge
from probes.fit.plan_calibration import CalibrationPlan
from probes.fit.trajectories import Trajectories, follow, length_grid
from probes.linear import LinearProbe
from tests.monitor.builders import EARLY, ENGINE, LATE, Rows, batch, probe

N_PROMPT = 3
PLANS = {
    "learnt": CalibrationPlan(alpha=0.05),
    "even": CalibrationPlan(alpha=0.1, budget="even"),
    "gated": CalibrationPlan(alpha=0.05, gates=("mean",), gate_share=0.05),
}


def watching() -> list[LinearProbe]:
    """As the builders' detectors, but one counts the answer only."""
    return [
        probe("max", EARLY, 0, Max(tokens="answer")),
        probe("ema", EARLY, 1, EMAMax(alpha=0.5)),
        probe("mean", LATE, 2, Mean()),
    ]


def requests(n: int, seed: int, shift: float = 0.0) -> list[Float32]:
    """Activations (n_tokens, 4) of requests of 4 to 100 tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        offset = rng.normal(size=4) + shift * (rng.random() < 0.3)
        length = int(rng.integers(4, 101))
        found.append((rng.normal(size=(length, 4)) + offset).astype(np.float32))
    return found


def walk(some: list[Float32]) -> Trajectories:
    """Where these requests stand on their way."""
    probes = watching()
    bank = ProjectionBank.compile(probes)
    x = np.concatenate(some)
    columns, norms = bank.project({EARLY: x, LATE: x})
    n_tokens = np.array([len(one) for one in some])
    positions = np.concatenate([np.arange(len(one)) for one in some])
    grid = length_grid(int(n_tokens.max()))
    evidence = Scorer(bank, probes).evidence(columns, norms, {})
    answers = is_answer(positions, np.full(len(x), N_PROMPT))
    return Trajectories(
        grid=grid,
        n_tokens=n_tokens,
        statistics=follow(probes, evidence, n_tokens, answers, grid),
        is_monotone=np.array([p.aggregator.is_monotone for p in probes]),
    )


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_flags_and_p_values_are_those_of_calibration(plan: CalibrationPlan) -> None:
    """
    Interleaved, in steps of any size, each request is judged as it is offline.
    """
    names = [p.name for p in watching()]
    calibration = calibrate(walk(requests(600, 1)), names, plan, "d")
    assert calibration.n_bins > 1
    some = requests(80, 2, shift=1.5)
    expected = judge(walk(some), calibration)
    monitor = Monitor(ProjectionBank.compile(watching()), watching(), calibration)
    rng = np.random.default_rng(3)
    done, step = np.zeros(len(some), dtype=int), 0
    flagged: dict[int, set[str]] = {i: set() for i in range(len(some))}
    found: dict[int, float] = {}
    while len(found) < len(some):
        step += 1
        going = [i for i in range(len(some)) if i not in found and rng.random() < 0.4]
        ends = {i: min(len(some[i]), done[i] + int(rng.integers(1, 40))) for i in going}
        rows = [
            Rows(str(i), int(done[i]), some[i][done[i] : ends[i]].tolist(), 0, N_PROMPT)
            for i in going
        ]
        for flag in monitor.observe(batch(*rows, step=step)):
            flagged[int(flag.request_id)].add(flag.detector)
            assert flag.score > flag.threshold
        for i in going:
            done[i] = ends[i]
            if done[i] == len(some[i]):
                flags, summary = monitor.finish(ENGINE, str(i))
                flagged[i] |= {flag.detector for flag in flags}
                found[i] = summary.p_value

    for i in range(len(some)):
        offline = {n for n, x in zip(names, expected.is_flagged[i], strict=True) if x}
        if not expected.is_unlike[i]:
            assert offline == flagged[i]
        np.testing.assert_equal(found[i], float(expected.p_values[i]))
    assert expected.is_flagged.any()
    assert not expected.is_flagged.all()
