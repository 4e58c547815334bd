"""Records as the wire's messages, for tests that play the engine."""

import numpy as np
from numpy.typing import NDArray

from monitor.records import Gap, StepBatch
from probes.identity import ModelIdentity
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import REASON_TO_PROTO


def identity_to_proto(identity: ModelIdentity) -> pb.ModelIdentity:
    """Convert a model identity for `HelloRequest.identity`."""
    return pb.ModelIdentity(
        model=identity.model,
        config_sha256=identity.config_sha256,
        weights_sha256=identity.weights_sha256,
        tokenizer_sha256=identity.tokenizer_sha256,
        d_model=identity.d_model,
        n_layers=identity.n_layers,
        dtype=identity.dtype,
    )


def batch_to_proto(
    batch: StepBatch, *, captured_at: float = 0.0, n_rows_expected: int | None = None
) -> pb.StepBatch:
    """Convert *batch*; *captured_at* is seconds since the epoch."""
    n_rows = int(batch.row_offsets[-1]) if len(batch.row_offsets) else 0
    message = pb.StepBatch(
        step=batch.step,
        bank_digest=batch.bank_digest,
        token_ids=np.ascontiguousarray(batch.token_ids, dtype="<i4").tobytes(),
        finished=[
            pb.FinishedRequest(request_id=r, n_positions=batch.n_positions.get(r, 0))
            for r in batch.finished
        ],
        preempted=batch.preempted,
        slots=np.ascontiguousarray(batch.slots, dtype="<i4").tobytes(),
        weights_generation=batch.weights_generation,
        n_rows_expected=n_rows if n_rows_expected is None else n_rows_expected,
        captured_at=captured_at,
    )
    for hook_point, values in (batch.activations or batch.columns).items():
        norms = batch.squared_norms[hook_point]
        message.hook_points.append(
            pb.HookPointRows(
                hook_point=hook_point,
                width=values.shape[1],
                values=np.ascontiguousarray(values, dtype="<f4").tobytes(),
                squared_norms=np.ascontiguousarray(norms, dtype="<f4").tobytes(),
            )
        )
    message.request_ids.extend(batch.request_ids)
    message.layout = layout_of(batch).astype("<i4").tobytes()
    message.adapters.extend(batch.adapters)
    for i, prefix in batch.cached.items():
        message.cached.add(
            request=i,
            token_ids=prefix.token_ids.astype("<i4").tobytes(),
            slots=prefix.slots.astype("<i4").tobytes(),
        )
    return message


def layout_of(batch: StepBatch) -> NDArray[np.int64]:
    """Rows, first position, cached, prompt and drafts of each request."""
    n_requests = len(batch.request_ids)
    n_drafts = batch.n_drafts if len(batch.n_drafts) else np.zeros(n_requests)
    return np.stack(
        [
            np.diff(batch.row_offsets),
            batch.first_positions,
            batch.n_cached,
            batch.n_prompt_tokens,
            n_drafts,
        ],
        axis=1,
    ).astype(np.int64)


def gap_to_proto(gap: Gap) -> pb.Gap:
    """Convert *gap*; its engine and rank travel in the `StreamRequest`."""
    return pb.Gap(
        reason=REASON_TO_PROTO[gap.reason],
        first_step=gap.first_step,
        last_step=gap.last_step,
        n_tokens=gap.n_tokens,
        lost=[
            pb.LostRange(
                request_id=lost.request_id,
                first_position=lost.first_position,
                n_tokens=lost.n_tokens,
            )
            for lost in gap.lost
        ],
        finished=[pb.FinishedRequest(request_id=r) for r in gap.finished],
        n_finished=gap.n_finished,
        began_at=gap.began_at,
        ended_at=gap.ended_at,
    )
