"""Tensor parallel: one rank's rows, read at the norms, equal those of one process."""

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.engines import HOOK_POINTS, run_engine
from tests.e2e.rows import rows_at
from tests.e2e.test_rows import compare_run

pytestmark = pytest.mark.vllm


def test_two_ranks_send_what_one_sends(tmp_path: Path) -> None:
    """
    With two ranks the taps are at the norms, under torch.compile too: every row
    arrives once, is the reference's, and equals that of one rank tapped at the blocks.
    """
    one = run_engine(
        tmp_path / "one",
        mode="pushdown",
        enforce_eager=True,
        n_requests=8,
        capture={"tap_point": "block"},
    )
    two = run_engine(
        tmp_path / "two",
        mode="pushdown",
        enforce_eager=False,
        n_requests=8,
        tensor_parallel_size=2,
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    )

    for site, hook_point in enumerate(HOOK_POINTS):
        found = compare_run(two, site)
        assert (0, 0, 0) == (found.n_missing, found.n_unasked, found.n_wrong_token)
        assert found.n_repeated == 0
        assert found.n_rows > 500
        assert found.worst < 1e-4
        apart, _ = rows_at(one.batches, hook_point)
        together, _ = rows_at(two.batches, hook_point)
        for request in two.requests:
            if request["abort_at_step"] is None:
                name = request["request_id"]
                assert apart[name].keys() == together[name].keys()
                for position, (token, values, _) in together[name].items():
                    assert token == apart[name][position][0]
                    np.testing.assert_allclose(
                        values, apart[name][position][1], rtol=1e-3, atol=1e-3
                    )
    log = (tmp_path / "two" / "engine.log").read_text()
    assert "tapped at the end of the block" not in log


def test_one_rank_tapped_at_the_norms(tmp_path: Path) -> None:
    """Asked for by name, the norms are read on one rank too, and rows are as right."""
    run = run_engine(
        tmp_path,
        mode="activations",
        enforce_eager=True,
        n_requests=8,
        capture={"tap_point": "norm"},
    )

    for site in range(len(HOOK_POINTS)):
        found = compare_run(run, site)
        assert (0, 0, 0) == (found.n_missing, found.n_unasked, found.n_wrong_token)
        assert found.n_repeated == 0
        assert found.worst < 1e-4
