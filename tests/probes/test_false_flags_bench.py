# ruff: noqa: E402 - the benchmark is imported once SciPy and scikit-learn are there.
"""The benchmark of the promise, in short."""

import numpy as np

from tests.probes.builders import require_sklearn

require_sklearn()

from probes.fit.plan_calibration import CalibrationPlan
from tests.bench.false_flags import ALPHA, interval, run


def test_the_promise_is_kept_where_the_token_rule_breaks_it() -> None:
    """
    Ten detectors on dependent tokens of any length: at most alpha, as promised.
    """
    plan = CalibrationPlan(alpha=ALPHA, seed=3, check_share=0.1)

    rates = run(6, 600, plan, is_shown=False)

    mean, low, _ = interval(rates["request"].overall)
    assert low <= ALPHA
    assert mean <= 2 * ALPHA
    # The longer a request, the surer the token rule flags it.
    by_octave = [float(np.mean(r)) for r in rates["token"].by_octave]
    assert by_octave[-1] > 0.4
    assert by_octave == sorted(by_octave)
