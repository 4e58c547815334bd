# Rule: a request's rows are in memory while it runs, and on disk once it has ended.
"""Receives activations from the plugin and writes them as data sets."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from monitor.checks import BatchError
from monitor.ranks import RankJoin, Told, joined
from monitor.records import NOT_WRITTEN, StepBatch
from probes.dataset import Label
from probes.dataset_writer import DatasetWriter, written_requests
from probes.identity import ModelIdentity
from service.request_ids import client_id
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as pb_grpc
from service.wire import WireError, batch_from_proto, identity_from_proto

_MAX_MESSAGE_BYTES = 256 << 20


class CollectionError(RuntimeError):
    """A data set would not be what it says: it is left unfinished. One line."""


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
    """
    A data set to write.

    Attributes:
        path: Its folder.

        labels: Of the prompts that belong in it, by their id.

        settings: How they are sent; see `DatasetWriter`.

        goes_on: Whether requests that an interrupted collection with the same
            settings left there are kept.
    """

    path: Path
    labels: Mapping[str, Mapping[str, Label]]
    settings: Mapping[str, Label] = field(default_factory=dict)
    goes_on: bool = False

    def written(self) -> set[str]:
        """Ids of the prompts that need not be sent again."""
        return written_requests(self.path) if self.goes_on else set()


class Receiver(pb_grpc.CaptureServicer, ABC):
    """Answers the plugin's stream as a daemon does; a subclass says what it is for."""

    def Stream(  # noqa: N802 - gRPC's spelling
        self,
        request_iterator: Iterator[pb.StreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.StreamResponse]:
        for request in request_iterator:
            kind = request.WhichOneof("payload")
            if kind == "batch":
                try:
                    batch = batch_from_proto(
                        request.batch, engine=request.engine, rank=request.rank
                    )
                except WireError as error:
                    self.on_unreadable(error)
                else:
                    self.on_batch(batch, request.batch.n_rows_expected)
            elif kind == "gap":
                self.on_gap(request.gap)
            yield pb.StreamResponse()

    @abstractmethod
    def on_batch(self, batch: StepBatch, n_rows_expected: int) -> None:
        """
        Take the rows of a step. Called on gRPC's thread.

        Args:
            batch: As received; one that was not acknowledged comes again.

            n_rows_expected: How many rows the scheduler asked for.
        """

    def on_unreadable(self, error: WireError) -> None:
        """Give a step up that does not say what it must: ends the stream."""
        raise error

    @abstractmethod
    def on_gap(self, gap: pb.Gap) -> None:
        """Take what was lost. Called on gRPC's thread."""


class Collector(Receiver):
    """
    Writes the rows of each request to its data set as soon as it ends.

    A request that is in no target is ignored. As a context manager it leaves those
    data sets unfinished that `finish` has not finished.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        """
        Expect the prompts of *targets*.

        Raises:
            ValueError: A prompt is in two of them.
        """
        self.hello: pb.HelloRequest | None = None
        prompt_ids = Counter(prompt_id for t in targets for prompt_id in t.labels)
        for prompt_id, n in prompt_ids.items():
            if n > 1:
                raise ValueError(
                    f"prompt {prompt_id!r}: expected in one data set, got it in {n}"
                )
        self._join: RankJoin[None] | None = None
        self._last_step = 0
        self._targets = {prompt_id: t for t in targets for prompt_id in t.labels}
        self._data_sets = {target.path: target for target in targets}
        self._changed = threading.Condition()
        self._rows: dict[str, _Rows] = defaultdict(_Rows)
        # vLLM's request id by prompt id; of an earlier run's it is not known.
        self._written = {p: "" for target in targets for p in target.written()}
        self._writers: dict[Path, DatasetWriter] = {}
        self._n_lost = 0
        self._problem: CollectionError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            for writer in self._writers.values():
                writer.abort()

    def Hello(  # noqa: N802 - gRPC's spelling
        self, request: pb.HelloRequest, context: grpc.ServicerContext
    ) -> pb.HelloResponse:
        if request.mode != pb.CAPTURE_MODE_ACTIVATIONS:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "collection needs mode 'activations', the plugin is in 'pushdown'",
            )
        with self._changed:
            ranks = tuple(request.ranks)
            if len(ranks) > 1 and (self._join is None or self._join.ranks != ranks):
                self._join, self._last_step = RankJoin(ranks), 0
            self.hello = request
            self._changed.notify_all()
        return pb.HelloResponse()

    def on_batch(self, batch: StepBatch, n_rows_expected: int) -> None:
        """Keep the rows, and write the requests that ended."""
        with self._changed:
            self._count_lost(batch, n_rows_expected)
            if self._problem is None:
                try:
                    for whole in self._whole(batch):
                        self._take(whole)
                except CollectionError as problem:
                    # Raised here it would end the stream, and the plugin would send
                    # the batch again and again: `wait` raises it.
                    self._problem = problem
            self._changed.notify_all()

    def on_unreadable(self, error: WireError) -> None:
        """Give up: the plugin is of another version."""
        with self._changed:
            self._problem = CollectionError(
                f"the plugin sent a step that cannot be read: {error}; expected "
                f"vLLM's environment to hold the same version of innerwatch as this one"
            )
            self._changed.notify_all()

    def on_gap(self, gap: pb.Gap) -> None:
        """Count: a data set must not have holes."""
        with self._changed:
            self._n_lost += gap.n_tokens
            self._changed.notify_all()

    def begin(self, timeout_seconds: float) -> None:
        """
        Wait for the plugin's Hello, and begin every data set, or go on with it.

        Raises:
            CollectionError: It did not come in time, or one cannot be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.hello is not None, timeout_seconds)
            for path in self._data_sets:
                try:
                    self._writer(path)
                except (ValueError, OSError) as error:
                    raise CollectionError(str(error)) from error

    def wait(self, timeout_seconds: float) -> None:
        """
        Wait until every prompt of every target has ended, or something is wrong.

        Raises:
            CollectionError: Some did not end in time or came twice, rows were lost,
                or a request could not be written.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._problem or self._n_lost or not self._missing(),
                timeout_seconds,
            )
            self._check()

    def finish(self) -> dict[Path, int]:
        """
        Finish the data sets and return the number of rows of each.

        Raises:
            CollectionError: As for `wait`. No data set is finished.
        """
        with self._changed:
            self._check()
            n_rows = {}
            for path in self._data_sets:
                writer = self._writer(path)
                n_rows[path] = writer.n_rows
                writer.close()
            self._writers.clear()
        return n_rows

    def _missing(self) -> set[str]:
        return self._targets.keys() - self._written.keys()

    def _check(self) -> None:
        if self._problem:
            raise self._problem
        if self._n_lost:
            raise CollectionError(f"{self._n_lost} rows were lost on the way")
        if missing := self._missing():
            raise CollectionError(
                f"{len(missing)} of {len(self._targets)} requests did not arrive from "
                f"the plugin, the first is {min(missing)!r}"
            )

    def _count_lost(self, batch: StepBatch, n_rows_expected: int) -> None:
        self._n_lost += max(0, n_rows_expected - len(batch.token_ids))
        for norms in batch.squared_norms.values():
            self._n_lost += int(np.count_nonzero(norms == NOT_WRITTEN))

    def _whole(self, batch: StepBatch) -> list[StepBatch]:
        """Return the steps that every rank has sent with *batch*."""
        if self._join is None:
            return [batch]
        if batch.step <= self._last_step:
            return []
        steps = []
        try:
            self._join.put(batch.rank, Told(record=batch, carried=[]))
            for group in self._join.ready():
                records = [told.record for told in group.told]
                parts = [r for r in records if isinstance(r, StepBatch)]
                self._last_step = parts[0].step
                if group.is_whole:
                    steps.append(joined(parts))
                else:
                    self._n_lost += len(parts[0].token_ids)
        except BatchError as error:
            raise CollectionError(str(error)) from error
        return steps

    def _take(self, batch: StepBatch) -> None:
        for index, request_id in enumerate(batch.request_ids):
            prompt_id = client_id(request_id)
            is_sent_again = self._written.get(prompt_id) == request_id
            if prompt_id not in self._targets or is_sent_again:
                continue
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
                self._write(request_id, self._rows.pop(request_id))

    def _write(self, request_id: str, rows: _Rows) -> None:
        prompt_id = client_id(request_id)
        if prompt_id in self._written:
            raise CollectionError(
                f"request {prompt_id!r}: expected once, arrived as "
                f"{self._written[prompt_id]!r} and as {request_id!r}"
            )
        # Sent again, or recomputed after a preemption: the first rows are kept.
        positions, kept = np.unique(np.concatenate(rows.positions), return_index=True)
        n_tokens = max(len(positions), rows.n_prompt_tokens)
        if not np.array_equal(positions, np.arange(n_tokens)):
            raise CollectionError(
                f"request {prompt_id!r}: expected each position from 0 to "
                f"{n_tokens - 1}, got {len(positions)} of them"
            )
        target = self._targets[prompt_id]
        try:
            self._writer(target.path).append(
                prompt_id,
                {h: np.concatenate(v)[kept] for h, v in rows.activations.items()},
                np.concatenate(rows.token_ids)[kept],
                positions,
                rows.n_prompt_tokens,
                target.labels[prompt_id],
            )
        except (ValueError, OSError) as error:
            raise CollectionError(f"request {prompt_id!r}: {error}") from error
        self._written[prompt_id] = request_id

    def _writer(self, path: Path) -> DatasetWriter:
        """The writer of *path*, begun at first need: the identity is in the Hello."""
        if path not in self._writers:
            if self.hello is None:
                raise CollectionError(f"{path}: expected a Hello before rows, got none")
            identity = ModelIdentity(**identity_from_proto(self.hello.identity))
            target = self._data_sets[path]
            self._writers[path] = DatasetWriter(
                path,
                identity,
                self.hello.hook_points,
                identity.d_model,
                settings=target.settings,
                goes_on=target.goes_on,
            )
        return self._writers[path]


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
