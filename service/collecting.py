"""Receives activations from the plugin and writes them as a data set."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from monitor.records import NOT_WRITTEN, StepBatch
from probes.dataset import DatasetWriter, Label
from probes.identity import ModelIdentity
from service.request_ids import client_id
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from service.wire import batch_from_proto, identity_from_proto

_MAX_MESSAGE_BYTES = 256 << 20


class CollectionError(RuntimeError):
    """Rows are missing: the data set would not be what it says."""


@dataclass(slots=True)
class _Rows:
    n_prompt_tokens: int = 0
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    token_ids: list[NDArray[np.int32]] = field(default_factory=list)
    activations: dict[str, list[NDArray[np.float32]]] = field(
        default_factory=lambda: defaultdict(list)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A data set to write, and the labels of the prompts that belong in it."""

    path: Path
    labels: Mapping[str, Mapping[str, Label]]


class Receiver(pb_grpc.CaptureServicer):
    """Answers the plugin's stream as a daemon does; a subclass says what it is for."""

    def Stream(  # noqa: N802 - gRPC's spelling
        self,
        request_iterator: Iterator[pb.StreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamResponse]:
        for request in request_iterator:
            kind = request.WhichOneof("payload")
            if kind == "batch":
                self.on_batch(
                    batch_from_proto(
                        request.batch, engine=request.engine, rank=request.rank
                    )
                )
            elif kind == "gap":
                self.on_gap(request.gap)
            yield pb.StreamResponse()

    def on_batch(self, batch: StepBatch) -> None:
        """Take the rows of a step. Called on gRPC's thread."""
        raise NotImplementedError

    def on_gap(self, gap: pb.Gap) -> None:
        """Take what was lost. Called on gRPC's thread."""
        raise NotImplementedError


class Collector(Receiver):
    """Keeps every request's rows."""

    def __init__(self, on_finished: Callable[[str], None] = lambda _: None) -> None:
        self.hello: pb.HelloRequest | None = None
        self._on_finished = on_finished
        self._changed = threading.Condition()
        self._rows: dict[str, _Rows] = defaultdict(_Rows)
        self._finished: dict[str, _Rows] = {}
        self._n_lost = 0

    def Hello(  # noqa: N802 - gRPC's spelling
        self, request: pb.HelloRequest, context: grpc.ServicerContext
    ) -> pb.HelloResponse:
        if request.mode != pb.CAPTURE_MODE_ACTIVATIONS:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "collection needs mode 'activations', the plugin is in 'pushdown'",
            )
        with self._changed:
            self.hello = request
            self._changed.notify_all()
        return pb.HelloResponse()

    def on_batch(self, batch: StepBatch) -> None:
        """Keep the rows, and note the requests that ended."""
        with self._changed:
            self._take(batch)
            self._changed.notify_all()

    def on_gap(self, gap: pb.Gap) -> None:
        """Count: a data set must not have holes."""
        self._n_lost += gap.n_tokens

    def _take(self, batch: StepBatch) -> None:
        for norms in batch.squared_norms.values():
            self._n_lost += int(np.count_nonzero(norms == NOT_WRITTEN))
        for index, request_id in enumerate(batch.request_ids):
            start, end = batch.row_offsets[index : index + 2].tolist()
            first = int(batch.first_positions[index])
            rows = self._rows[request_id]
            rows.n_prompt_tokens = int(batch.n_prompt_tokens[index])
            rows.positions.append(np.arange(first, first + end - start))
            rows.token_ids.append(batch.token_ids[start:end])
            for hook_point, values in batch.activations.items():
                rows.activations[hook_point].append(values[start:end])
        for request_id in batch.finished:
            if request_id in self._rows:
                self._finished[client_id(request_id)] = self._rows.pop(request_id)
                self._on_finished(request_id)

    def wait_for(self, prompt_ids: set[str], timeout_seconds: float) -> None:
        """
        Wait until each of *prompt_ids* has ended.

        Raises:
            CollectionError: Some did not in time, or rows were lost.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: prompt_ids <= self._finished.keys(), timeout_seconds
            )
            missing = sorted(prompt_ids - self._finished.keys())
        if missing:
            raise CollectionError(
                f"{len(missing)} of {len(prompt_ids)} requests did not arrive from the "
                f"plugin, the first is {missing[0]!r}"
            )
        if self._n_lost:
            raise CollectionError(f"{self._n_lost} rows were lost on the way")

    def write(self, target: Target) -> int:
        """Write the requests that *target* labels; return the number of rows."""
        assert self.hello is not None
        identity = ModelIdentity(**identity_from_proto(self.hello.identity))
        n_rows = 0
        with DatasetWriter(
            target.path, identity, self.hello.hook_points, identity.d_model
        ) as writer:
            for prompt_id, labels in target.labels.items():
                rows = self._finished.pop(prompt_id)
                # Recomputed after a preemption: the first computation is kept.
                positions = np.concatenate(rows.positions)
                _, kept = np.unique(positions, return_index=True)
                writer.append(
                    prompt_id,
                    {
                        h: np.concatenate(parts)[kept]
                        for h, parts in rows.activations.items()
                    },
                    np.concatenate(rows.token_ids)[kept],
                    positions[kept],
                    rows.n_prompt_tokens,
                    labels,
                )
                n_rows += len(kept)
        return n_rows


@contextlib.contextmanager
def collecting(socket_path: Path, collector: Collector) -> Iterator[str]:
    """Serve *collector* on a unix socket; yields the address for the plugin."""
    server = grpc.server(
        ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)],
    )
    pb_grpc.add_CaptureServicer_to_server(collector, server)
    address = f"unix:{socket_path}"
    server.add_insecure_port(address)
    server.start()
    try:
        yield address
    finally:
        server.stop(1).wait()
