"""The layout that both model runners of vLLM keep, read from what they keep it in."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from service.capture.rows import LayoutError, Rows, read_rows, scheduled_rows


def v1_runner() -> Any:
    """A V1 runner's batch, which has room for more requests than it holds."""
    return SimpleNamespace(
        input_batch=SimpleNamespace(
            num_reqs=2,
            req_ids=["b", "a", None],
            num_computed_tokens_cpu=np.array([5, 0, 99], dtype=np.int32),
        ),
        input_ids=SimpleNamespace(gpu=torch.arange(10, 20, dtype=torch.int32)),
    )


def v2_runner() -> Any:
    """The same batch as the V2 runner keeps it, padded for a CUDA graph."""
    return SimpleNamespace(
        execute_model_state=SimpleNamespace(
            input_batch=SimpleNamespace(
                num_reqs=2,
                req_ids=["b", "a"],
                query_start_loc_np=np.array([0, 1, 4, 4, 4], dtype=np.int32),
                num_computed_tokens_np=np.array([5, 0], dtype=np.int32),
                input_ids=torch.arange(10, 20, dtype=torch.int32),
            )
        )
    )


def scheduled(**n_tokens: int) -> Any:
    """A scheduler's output: "a" is new, "b" went on from position 5."""
    return SimpleNamespace(
        scheduled_spec_decode_tokens={},
        num_scheduled_tokens=n_tokens,
        scheduled_new_reqs=[SimpleNamespace(req_id="a", num_computed_tokens=0)],
        scheduled_cached_reqs=SimpleNamespace(req_ids=["b"], num_computed_tokens=[5]),
    )


@pytest.mark.parametrize("runner", [v1_runner(), v2_runner()], ids=["V1", "V2"])
def test_rows_are_in_the_runners_order(runner: Any) -> None:
    """
    Not in the scheduler's: the runner reorders; padding is no row.
    """
    rows = read_rows(runner, scheduled(a=3, b=1))

    assert ("b", "a") == rows.request_ids
    assert [1, 3] == rows.n_rows.tolist()
    assert [5, 0] == rows.first_positions.tolist()
    assert [10, 11, 12, 13] == rows.token_ids.tolist()


@pytest.mark.parametrize("runner", [v1_runner(), v2_runner()], ids=["V1", "V2"])
@pytest.mark.parametrize("asked", [{"a": 3}, {"a": 3, "b": 1, "c": 1}])
def test_a_layout_of_another_step_is_refused(
    runner: Any, asked: dict[str, int]
) -> None:
    """
    Rows that nobody scheduled, or scheduled ones without a row: no row is believed.
    """
    with pytest.raises(LayoutError, match="the scheduler asked for"):
        read_rows(runner, scheduled(**asked))


def test_lost_rows_keep_their_names() -> None:
    """
    What the scheduler asked for is known without the runner: requests and positions.
    """
    rows = scheduled_rows(scheduled(a=3, b=1))

    assert ("a", "b") == rows.request_ids
    assert [3, 1] == rows.n_rows.tolist()
    assert [0, 5] == rows.first_positions.tolist()


def test_a_cut_keeps_every_row_once() -> None:
    """
    Cut anywhere, the parts hold the rows of the whole, at the same positions.
    """
    whole = Rows(
        request_ids=("a", "b", "c"),
        n_rows=np.array([3, 1, 4]),
        first_positions=np.array([0, 9, 20]),
        token_ids=torch.arange(8),
    )
    positions = [("a", 0), ("a", 1), ("a", 2), ("b", 9)]
    positions += [("c", 20), ("c", 21), ("c", 22), ("c", 23)]

    for start in range(8):
        for stop in range(start + 1, 9):
            part, kept = whole.cut(start, stop)
            assert positions[start:stop] == [
                (name, first + i)
                for name, n, first in zip(
                    part.request_ids, part.n_rows, part.first_positions, strict=True
                )
                for i in range(n)
            ]
            assert part.request_ids == tuple("abc"[i] for i in kept)
            assert list(range(start, stop)) == part.token_ids.tolist()


@pytest.mark.vllm
def test_v2_rows_are_read_from_vllms_own_batch() -> None:
    """
    The V2 runner's `InputBatch`, made by vLLM, has the fields and shapes read here.
    """
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    buffers = InputBuffers(8, 64, torch.device("cpu"))
    batch = InputBatch.make_dummy(3, 10, buffers)
    runner = SimpleNamespace(execute_model_state=SimpleNamespace(input_batch=batch))
    asked = dict(zip(batch.req_ids, batch.num_scheduled_tokens.tolist(), strict=True))

    rows = read_rows(
        runner,
        SimpleNamespace(scheduled_spec_decode_tokens={}, num_scheduled_tokens=asked),
    )

    assert tuple(batch.req_ids) == rows.request_ids
    assert batch.num_scheduled_tokens.tolist() == rows.n_rows.tolist()
    assert [0, 0, 0] == rows.first_positions.tolist()
    assert (10,) == tuple(rows.token_ids.shape)
