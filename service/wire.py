"""Converts between wire messages and records, and refuses what does not fit."""

# Rule 1: numpy, protobuf and monitor.records only: no grpc, no probes, no log.
#
# Rule 2: whatever bytes arrive, the only exception that leaves is WireError.

from collections.abc import Iterator, Mapping
from hashlib import sha256
from math import isfinite
from typing import Protocol, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from monitor.records import CachedPrefix, Gap, LossReason, LostRange, StepBatch
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_F32 = np.dtype("<f4")
_I32 = np.dtype("<i4")
_T = TypeVar("_T", bound=np.generic)

REASON_TO_PROTO: dict[LossReason, pb.LossReason] = {
    LossReason.BUFFER_FULL: pb.LOSS_REASON_BUFFER_FULL,
    LossReason.DISCONNECTED: pb.LOSS_REASON_DISCONNECTED,
    LossReason.NO_BANK: pb.LOSS_REASON_NO_BANK,
    LossReason.PREFIX_CACHED: pb.LOSS_REASON_PREFIX_CACHED,
    LossReason.TAP_SILENT: pb.LOSS_REASON_TAP_SILENT,
    LossReason.REFUSED: pb.LOSS_REASON_REFUSED,
    LossReason.NOT_RECEIVED: pb.LOSS_REASON_NOT_RECEIVED,
    LossReason.LAYOUT_UNREADABLE: pb.LOSS_REASON_LAYOUT_UNREADABLE,
    LossReason.NOT_FINITE: pb.LOSS_REASON_NOT_FINITE,
    LossReason.MISATTRIBUTED: pb.LOSS_REASON_MISATTRIBUTED,
    LossReason.CANARY_FAILED: pb.LOSS_REASON_CANARY_FAILED,
}
"""Every loss reason and its number on the wire."""

REASON_FROM_PROTO: dict[int, LossReason] = {
    int(number): reason for reason, number in REASON_TO_PROTO.items()
}
"""The same table, read the other way."""


MAX_COUNT = 2**53
"""Steps and counts beyond this are refused: exact in a double, and in SQLite."""

N_LAYOUT = 5
"""Columns of ``StepBatch.layout``: rows, first position, cached, prompt, drafts."""

MAX_ROWS = 1 << 22
"""Rows of one message; checked before memory is taken for them."""

CALLER = "innerwatch-caller-bin"
"""Metadata of a call that shows or erases: who asks, as UTF-8."""

MAX_NAME = 512
"""Longest request id that is believed; vLLM's are under 100 characters."""


def short_id(request_id: str) -> str:
    """
    Return *request_id* as it is sent: if it is too long, its beginning and a hash.

    A client may choose any id, and a batch has other requests in it too.

    >>> short_id("chatcmpl-1"), len(short_id("x" * 100_000)) == MAX_NAME
    ('chatcmpl-1', True)
    """
    if len(request_id) <= MAX_NAME:
        return request_id
    digest = sha256(request_id.encode(errors="surrogatepass")).hexdigest()
    return f"{request_id[: MAX_NAME - len(digest) - 1]}~{digest}"


class WireError(ValueError):
    """A message does not say what it must; names the field, expected and got."""


class IdentityFields(TypedDict):
    """Keyword arguments of `probes.bundle.ModelIdentity`."""

    model: str
    config_sha256: str
    weights_sha256: str
    tokenizer_sha256: str
    d_model: int
    n_layers: int
    dtype: str


class BankLike(Protocol):
    """What `probes.bank.ProjectionBank` looks like from here."""

    @property
    def digest(self) -> str: ...
    @property
    def hook_points(self) -> tuple[str, ...]: ...
    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]: ...
    @property
    def biases(self) -> Mapping[str, NDArray[np.float32]]: ...


def identity_from_proto(message: pb.ModelIdentity) -> IdentityFields:
    """Return the keyword arguments that build the identity in *message*."""
    return IdentityFields(
        model=message.model,
        config_sha256=message.config_sha256,
        weights_sha256=message.weights_sha256,
        tokenizer_sha256=message.tokenizer_sha256,
        d_model=message.d_model,
        n_layers=message.n_layers,
        dtype=message.dtype,
    )


def bank_to_proto(bank: BankLike) -> pb.Bank:
    """Convert *bank* for `HelloResponse.bank`, one slice a hook point."""
    message = pb.Bank(digest=bank.digest)
    for hook_point in bank.hook_points:
        weight, bias = bank.weights[hook_point], bank.biases[hook_point]
        message.slices.append(
            pb.BankSlice(
                hook_point=hook_point,
                n_columns=weight.shape[0],
                d_model=weight.shape[1],
                weight=np.ascontiguousarray(weight, dtype=_F32).tobytes(),
                bias=np.ascontiguousarray(bias, dtype=_F32).tobytes(),
            )
        )
    return message


def layout_of(message: pb.StepBatch) -> NDArray[np.int64]:
    """
    Return what *message* says of its requests' rows, int64 (n_requests, 5).

    Raises:
        WireError: It is of another number of requests, or a count is negative.
    """
    shape = (len(message.request_ids), N_LAYOUT)
    layout = _array(message.layout, shape, _I32, "batch.layout").astype(np.int64)
    if layout.size and layout.min() < 0:
        raise WireError(f"batch.layout: expected 0 or more, got {layout.min()}")
    return layout


def batch_from_proto(
    message: pb.StepBatch,
    *,
    engine: str,
    rank: int,
    holds_activations: bool | None = None,
) -> StepBatch:
    """
    Convert a step's message to a record whose arrays view the message's bytes.

    Args:
        message: As received.
        engine: The sender's engine.
        rank: The sender's pipeline stage.
        holds_activations: What the engine's Hello said of its mode. None: rows
            without a bank digest are activations.

    Raises:
        WireError: A size does not fit, or a name is empty or repeats.
    """
    layout = layout_of(message)
    n_rows_each, first_positions, n_cached, n_prompt_tokens, n_drafts = layout.T
    n_rows = int(n_rows_each.sum())
    if n_rows > MAX_ROWS or (n_rows and not message.hook_points):
        raise WireError(
            f"batch.layout: expected up to {MAX_ROWS} rows, at one hook point or "
            f"more, got {n_rows} at {len(message.hook_points)}"
        )
    if message.step > MAX_COUNT:
        raise WireError(f"batch.step: expected up to {MAX_COUNT}, got {message.step}")
    values: dict[str, NDArray[np.float32]] = {}
    squared_norms: dict[str, NDArray[np.float32]] = {}
    for i, rows in enumerate(message.hook_points):
        where = f"batch.hook_points[{i}]"
        if not rows.hook_point or rows.hook_point in values:
            raise WireError(
                f"{where}.hook_point: expected a name not used before, "
                f"got {rows.hook_point!r}"
            )
        values[rows.hook_point] = _floats(
            rows.values, (n_rows, rows.width), where + ".values"
        )
        squared_norms[rows.hook_point] = _floats(
            rows.squared_norms, (n_rows,), where + ".squared_norms"
        )
    if holds_activations is None:
        holds_activations = not message.bank_digest
    request_ids = tuple(message.request_ids)
    _check_names(request_ids, "batch.request_ids")
    finished = tuple(request.request_id for request in message.finished)
    _check_names(finished, "batch.finished")
    preempted = tuple(message.preempted)
    _check_names(preempted, "batch.preempted")
    columns, activations = ({}, values) if holds_activations else (values, {})
    return StepBatch(
        engine=engine,
        rank=rank,
        step=message.step,
        bank_digest=message.bank_digest,
        columns=columns,
        activations=activations,
        squared_norms=squared_norms,
        request_ids=request_ids,
        row_offsets=np.concatenate([[0], n_rows_each]).cumsum(),
        first_positions=first_positions,
        n_cached=n_cached,
        n_prompt_tokens=n_prompt_tokens,
        token_ids=_token_ids(message.token_ids, n_rows),
        finished=finished,
        preempted=preempted,
        slots=_array(
            message.slots, (n_rows if message.slots else 0,), _I32, "batch.slots"
        ),
        cached=dict(_cached(message, first_positions)),
        adapters=_adapters(message),
        weights_generation=message.weights_generation,
        n_drafts=n_drafts if n_drafts.any() else n_drafts[:0],
        n_positions={
            r.request_id: r.n_positions for r in message.finished if r.n_positions
        },
    )


def gap_from_proto(message: pb.Gap, *, engine: str, rank: int) -> Gap:
    """
    Convert a gap's message to a record.

    Raises:
        WireError: The reason is unspecified or unknown, more tokens are listed than
            the gap counts, or a request has no name.
    """
    if message.reason not in REASON_FROM_PROTO:
        raise WireError(
            f"gap.reason: expected one of {sorted(REASON_FROM_PROTO)}, "
            f"got {message.reason}"
        )
    counts = (message.n_tokens, message.n_finished)
    if max(*counts, message.first_step, message.last_step) > MAX_COUNT:
        raise WireError(f"gap: expected steps and counts up to {MAX_COUNT}")
    if not (isfinite(message.began_at) and isfinite(message.ended_at)):
        raise WireError("gap.began_at, gap.ended_at: expected finite seconds")
    n_listed = sum(lost.n_tokens for lost in message.lost)
    if n_listed > message.n_tokens:
        raise WireError(
            f"gap.n_tokens: expected at least the {n_listed} listed, "
            f"got {message.n_tokens}"
        )
    finished = tuple(request.request_id for request in message.finished)
    _check_names(finished, "gap.finished")
    if not all(0 < len(lost.request_id) <= MAX_NAME for lost in message.lost):
        raise WireError(f"gap.lost: expected ids of 1 to {MAX_NAME} characters")
    return Gap(
        engine=engine,
        rank=rank,
        reason=REASON_FROM_PROTO[message.reason],
        first_step=message.first_step,
        last_step=message.last_step,
        n_tokens=message.n_tokens,
        lost=tuple(
            LostRange(
                request_id=lost.request_id,
                first_position=lost.first_position,
                n_tokens=lost.n_tokens,
            )
            for lost in message.lost
        ),
        finished=finished,
        n_finished=max(message.n_finished, len(finished)),
        began_at=message.began_at,
        ended_at=message.ended_at,
    )


def _cached(
    message: pb.StepBatch, first_positions: NDArray[np.int64]
) -> Iterator[tuple[int, CachedPrefix]]:
    for i, prefix in enumerate(message.cached):
        where = f"batch.cached[{i}]"
        if prefix.request >= len(first_positions):
            raise WireError(
                f"{where}.request: expected one of {len(first_positions)}, "
                f"got {prefix.request}"
            )
        shape = (int(first_positions[prefix.request]),)
        yield (
            prefix.request,
            CachedPrefix(
                token_ids=_array(prefix.token_ids, shape, _I32, where + ".token_ids"),
                slots=_array(prefix.slots, shape, _I32, where + ".slots"),
            ),
        )


def _adapters(message: pb.StepBatch) -> tuple[str, ...]:
    adapters = tuple(message.adapters)
    if len(adapters) not in (0, len(message.request_ids)):
        raise WireError(
            f"batch.adapters: expected {len(message.request_ids)} or none, "
            f"got {len(adapters)}"
        )
    if max(map(len, adapters), default=0) > MAX_NAME:
        raise WireError(f"batch.adapters: expected names of up to {MAX_NAME}")
    return adapters if any(adapters) else ()


def _floats(raw: bytes, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    return _array(raw, shape, _F32, where)


def _token_ids(raw: bytes, n_rows: int) -> NDArray[np.int32]:
    # A sender that does not know the tokens leaves them out: -1 is "unknown".
    if not raw:
        return np.full(n_rows, -1, dtype=np.int32)
    return _array(raw, (n_rows,), _I32, "batch.token_ids")


def _array(
    raw: bytes, shape: tuple[int, ...], dtype: np.dtype[_T], where: str
) -> NDArray[_T]:
    n_bytes = dtype.itemsize
    for length in shape:
        n_bytes *= length
    if len(raw) != n_bytes:
        raise WireError(
            f"{where}: expected {n_bytes} bytes of {dtype.name} {shape}, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _check_names(names: tuple[str, ...], where: str) -> None:
    if len(set(names)) != len(names) or "" in names:
        raise WireError(f"{where}: expected distinct request ids, got {names!r:.200}")
    if max(map(len, names), default=0) > MAX_NAME:
        raise WireError(f"{where}: expected ids of up to {MAX_NAME} characters")
