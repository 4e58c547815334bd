"""Steps and losses as wire messages. Runs on the sender's thread."""

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from service.capture.outbox import Loss
from service.capture.step import Step
from service.capture.tap import MISATTRIBUTED
from service.ring_record import put_arrays
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import N_LAYOUT, short_id

_NO_SLOTS = np.zeros(0, dtype=np.int32)


def fill_batch(message: pb.StepBatch, step: Step, hook_points: tuple[str, ...]) -> None:
    """Write *step* into *message*; waits for its copy from the device."""
    arrays = describe_batch(message, step, hook_points)
    if arrays:
        put_arrays(message, [array.tobytes() for array in arrays])


def describe_batch(
    message: pb.StepBatch, step: Step, hook_points: tuple[str, ...]
) -> list[NDArray[np.generic]]:
    """
    Write *step* into *message*, all but its arrays; waits for its copy.

    Returns:
        The arrays, in the order of `put_arrays`; none if the step has no rows.
    """
    if step.copied is not None:
        step.copied.synchronize()
    step.unpack()
    message.step = step.step
    message.bank_digest = step.bank_digest
    message.preempted.extend(map(short_id, step.preempted))
    message.n_rows_expected = step.n_rows_expected
    message.captured_at = step.captured_at
    for request_id in step.finished:
        message.finished.add(
            request_id=short_id(request_id),
            n_positions=step.n_positions.get(request_id, 0),
        )
    if step.values is None or step.squared_norms is None or step.token_ids is None:
        return []
    assert step.rows is not None
    token_ids = step.token_ids.astype(np.int32, copy=False)
    slots = None if step.slots is None else step.slots.astype(np.int32)
    values, norms = step.values, step.squared_norms
    _describe_requests(message, step)
    row = 0
    # Of nearly every request, one that decodes, nothing is to be done here.
    for i, ((_, first, n), facts) in enumerate(
        zip(step.spans(), step.facts, strict=True)
    ):
        if slots is not None and not facts.is_shared:
            slots[row : row + n] = -1
        if first < len(facts.prompt):
            prompt = facts.prompt[first : first + n]
            # The row's token and its activation lie at one index: where the token is
            # not the one that the request has there, neither is the activation.
            if not np.array_equal(token_ids[row : row + len(prompt)], prompt):
                norms[:, row : row + n] = MISATTRIBUTED
        row += n
        cached = facts.cached
        # Of a request that was cut, only with the part that comes right behind it.
        if slots is not None and cached is not None and cached.n_tokens == first:
            before, held = cached.arrays()
            message.cached.add(
                request=i, token_ids=before.tobytes(), slots=held.tobytes()
            )
    message.weights_generation = step.weights_generation
    arrays: list[NDArray[np.generic]] = [
        token_ids,
        _NO_SLOTS if slots is None else slots,
    ]
    for site, hook_point in enumerate(hook_points):
        message.hook_points.add(hook_point=hook_point, width=values.shape[2])
        arrays += [values[site], norms[site]]
    return arrays


def _describe_requests(message: pb.StepBatch, step: Step) -> None:
    """All that is said of every request, in one array: there may be hundreds."""
    rows, facts = step.rows, step.facts
    assert rows is not None
    message.request_ids.extend(map(short_id, rows.request_ids))
    layout = np.zeros((len(facts), N_LAYOUT), dtype="<i4")
    layout[:, 0] = rows.n_rows
    layout[:, 1] = rows.first_positions
    layout[:, 2] = [f.n_cached for f in facts]
    layout[:, 3] = [f.n_prompt_tokens for f in facts]
    if rows.first_drafts:
        layout[:, 4] = [
            min(n, rows.n_drafts(request_id, first + n))
            for request_id, first, n in step.spans()
        ]
    message.layout = layout.tobytes()
    if any(f.adapter for f in facts):
        message.adapters.extend(f.adapter for f in facts)


def gap_message(loss: Loss) -> pb.Gap:
    """Return *loss* as a `Gap`."""
    return pb.Gap(
        reason=loss.reason,  # type: ignore[arg-type]
        first_step=loss.first_step,
        last_step=loss.last_step,
        n_tokens=loss.n_tokens,
        lost=[
            pb.LostRange(
                request_id=short_id(i), first_position=first, n_tokens=end - first
            )
            for i, (first, end) in chain(loss.more, loss.ranges.items())
        ],
        finished=[pb.FinishedRequest(request_id=short_id(i)) for i in loss.finished],
        n_finished=loss.n_finished,
        began_at=loss.began_at,
        ended_at=loss.ended_at,
    )
