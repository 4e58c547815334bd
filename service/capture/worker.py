"""The plugin's part in one vLLM worker: what it does at load, warm-up and each step.

Rule 1: at start a refusal is raised, and the server does not come up: an operator who
asked for a monitor must not get a server without one.

Rule 2: from the first request on nothing is raised into the engine. What goes wrong is
a loss with a reason.

Rule 3: the engine's thread never waits for the daemon or the network.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from service.capture.arena import Arena
from service.capture.bank import HostBank, host_bank
from service.capture.drafts import Drafts
from service.capture.hello import hello_request
from service.capture.layers import check_layers, find_decoder_layers, install_tap
from service.capture.outbox import Outbox
from service.capture.requests import Requests
from service.capture.rows import Rows, block_size_of, read_rows, scheduled_rows
from service.capture.sender import Sender
from service.capture.settings import KEY, CaptureError, CaptureSettings, layer_of
from service.capture.snapshot import Snapshooter
from service.capture.stages import Stage, shared_engine_id, this_stage
from service.capture.step import Step, overhead, row_bytes
from service.capture.tap import TapBuffers, use_kernels
from service.capture.tap_points import choose_tap_point
from service.capture.unsupported import check_supported
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb

_log = logging.getLogger("innerwatch.capture")

_MAX_BATCH_BYTES = 16 << 20
"""A larger step, as a long prefill's activations are, travels in parts.

Into how many must not depend on what one pipeline stage happens to hold: they number
steps alike.
"""


class CaptureWorker:
    """Taps one vLLM worker's model and hands each step's rows to the sender."""

    def __init__(self, worker: Any, settings: CaptureSettings) -> None:
        check_supported(worker.vllm_config)
        self._worker = worker
        self._settings = settings
        self._hook_points: tuple[str, ...] = ()
        self._stage: Stage | None = None
        self._engine = ""
        self._outbox = Outbox(settings.buffer_mib << 20)
        self._buffers: TapBuffers | None = None
        self._snapshooter: Snapshooter | None = None
        self._sender: Sender | None = None
        self._bank_lock = threading.Lock()
        self._pending: HostBank | None = None
        self._digest = ""
        d_model = worker.vllm_config.model_config.get_hidden_size()
        is_pushdown = settings.mode == "pushdown"
        self._width = 1 if is_pushdown else d_model
        widest = settings.k_max if is_pushdown else d_model
        n_bytes = row_bytes(len(settings.hook_points), widest)
        self._max_rows = max(1, _MAX_BATCH_BYTES // n_bytes)
        self._step = 0
        self._requests = Requests()
        self._drafts = Drafts(worker.vllm_config.model_config.max_model_len)
        self._block_size = 0
        self._weights_generation = 0
        self._is_prepared = False
        self._is_reported = False

    def after_load(self) -> None:
        """
        Install the taps, after vLLM's `load_model` and before it compiles.

        Raises:
            CaptureError: The model does not fit the settings.
        """
        config = self._worker.vllm_config
        model_config = config.model_config
        n_layers = model_config.get_total_num_hidden_layers()
        check_layers([layer_of(name) for name in self._settings.hook_points], n_layers)
        self._stage = this_stage(n_layers)
        self._engine = shared_engine_id()
        layers = find_decoder_layers(
            self._worker.get_model(),
            config.compilation_config.static_forward_context,
            self._stage.own,
        )
        self._hook_points = self._stage.owned(self._settings.hook_points)
        if not self._hook_points:
            return
        self._buffers = TapBuffers.allocate(
            n_sites=len(self._hook_points),
            max_rows=_max_rows(config),
            d_model=model_config.get_hidden_size(),
            k_max=self._settings.k_max if self._settings.mode == "pushdown" else None,
            device=next(layers[self._stage.own.start].parameters()).device,
        )
        use_kernels(self._buffers, model_config.dtype)
        for site, hook_point in enumerate(self._hook_points):
            point = choose_tap_point(
                self._worker.get_model(),
                layers,
                layer_of(hook_point),
                wanted=self._settings.tap_point,
                n_parallel=config.parallel_config.tensor_parallel_size,
                norm_types=_norm_types(),
            )
            install_tap(point, self._buffers, site)
        _log.info("innerwatch: tapped %s", ", ".join(self._hook_points))

    def after_warm_up(self) -> None:
        """
        Prove that each tap writes, through the graph that will serve; then connect.

        Raises:
            CaptureError: A tap stayed silent, as one does that a compile cache made
                without it, or that the compiler removed; or there is no memory.
        """
        if self._buffers is not None:
            self._buffers.poison(1)
        # On every rank, as the ranks' parts of it wait for each other.
        self._worker.execute_dummy_batch()
        if self._buffers is None:
            return
        if self._buffers.n_unwritten(1):
            raise CaptureError(
                f"the taps at {list(self._hook_points)} wrote nothing in a trial "
                f"step: the model runs a graph without them; clear vLLM's compile "
                f"cache, or report this"
            )
        if _tensor_parallel_rank() != 0:
            return
        self._snapshooter = Snapshooter(self._buffers, self._arena_for(self._buffers))
        self._block_size = block_size_of(self._worker.model_runner)
        self._sender = Sender(
            outbox=self._outbox,
            address=self._settings.address,
            hello=self._hello,
            on_hello=self._on_hello,
            on_bank=self._on_bank,
            bank_digest=self._next_digest,
            transport=self._settings.transport,
        )
        self._sender.start()

    def before_step(self, scheduler_output: Any) -> None:
        """Put a waiting bank in place, and mark the rows to come as not written."""
        if self._sender is None or self._buffers is None:
            return
        self._is_prepared = False
        with self._never_raising("a step could not be prepared"):
            with self._bank_lock:
                bank, self._pending = self._pending, None
            if bank is not None:
                # Until it is whole in the model, rows are of no bank.
                self._digest = ""
                bank.write_to(self._buffers)
                self._digest, self._width = bank.digest, bank.width
            self._buffers.poison(scheduler_output.total_num_scheduled_tokens)
            self._is_prepared = True

    def after_step(self, scheduler_output: Any) -> None:
        """Read the layout, now that it is right, and hand over a copy of the rows."""
        if self._sender is None:
            return
        n_rows = scheduler_output.total_num_scheduled_tokens
        if n_rows == 0 and not scheduler_output.finished_req_ids:
            return
        step = Step(
            step=self._step + 1,
            bank_digest=self._digest,
            captured_at=time.time(),
            n_rows_expected=n_rows,
            rows=None,
        )
        reason = pb.LOSS_REASON_LAYOUT_UNREADABLE
        with self._never_raising("the rows of a step could not be read"):
            self._describe(step, scheduler_output)
            if n_rows == 0:
                self._put(step)
                return
            dropped = self._make_room(step, scheduler_output)
            if dropped is None:
                step.rows = read_rows(self._worker.model_runner, scheduler_output)
                self._drafts.scheduled(step.rows)
                self._copy_rows(step, step.rows)
                self._put(step)
                return
            reason = dropped
        with self._never_raising("a loss could not be named"):
            step.rows = scheduled_rows(scheduler_output)
            self._drafts.scheduled(step.rows)
        # As many numbers as it would have taken in parts.
        step.n_steps = max(1, -(-n_rows // self._max_rows))
        self._step += step.n_steps
        step.step = self._step
        with self._never_raising("a loss could not be counted"):
            self._outbox.lose(step, reason)

    def after_sampling(self, output: Any) -> None:
        """Note which drafts were kept, in case a request ends with this step."""
        if self._sender is not None:
            with self._never_raising("what was sampled could not be read"):
                self._drafts.sampled(output, self._requests.facts)

    def _put(self, step: Step) -> None:
        for part in step.in_parts(self._max_rows):
            self._outbox.put(part, self._reason_if_full())
            self._step = part.step

    def weights_changed(self) -> None:
        """Note that what was said of a token no longer holds for the next one."""
        self._weights_generation += 1

    def close(self) -> None:
        """Send what is left, for a moment, and stop the sender."""
        if self._sender is not None:
            self._sender.close()

    def _describe(self, step: Step, scheduled: Any) -> None:
        """Note what the scheduler says of requests that came and went."""
        step.finished = tuple(scheduled.finished_req_ids)
        self._requests.update(scheduled, self._worker.model_runner, self._block_size)
        step.n_positions = self._drafts.ends(step.finished)
        step.preempted = tuple(scheduled.preempted_req_ids or ())

    def _copy_rows(self, step: Step, rows: Rows) -> None:
        assert self._snapshooter is not None
        step.facts = self._requests.of(rows.request_ids)
        step.weights_generation = self._weights_generation
        slots = rows.slots if self._block_size else None
        self._snapshooter.take_into(step, rows.token_ids, slots, self._width)

    @contextlib.contextmanager
    def _never_raising(self, what: str) -> Iterator[None]:
        # Serving is never harmed: whatever a vLLM that we have not seen does to us
        # on the engine's thread, the tokens are counted as lost and it goes on.
        try:
            yield
        except Exception:  # noqa: BLE001
            if not self._is_reported:
                self._is_reported = True
                _log.exception("innerwatch: %s; its tokens are counted as lost", what)

    def _make_room(self, step: Step, scheduled: Any) -> "pb.LossReason | None":
        """Reserve memory for *step*'s rows, or return why they are lost."""
        assert self._sender is not None
        assert self._snapshooter is not None
        if not self._is_prepared:
            return pb.LOSS_REASON_LAYOUT_UNREADABLE
        if self._settings.mode == "pushdown" and not self._digest:
            if self._sender.is_connected:
                return pb.LOSS_REASON_NO_BANK
            return pb.LOSS_REASON_DISCONNECTED
        n_rows = scheduled.total_num_scheduled_tokens
        n_bytes = n_rows * row_bytes(len(self._hook_points), self._width)
        n_bytes += overhead(len(scheduled.num_scheduled_tokens))
        if self._outbox.has_room(n_bytes):
            step.piece = self._snapshooter.reserve(n_rows, self._width)
        if step.piece is not None:
            return None
        return self._reason_if_full()

    def _reason_if_full(self) -> "pb.LossReason":
        if self._sender is not None and self._sender.is_connected:
            return pb.LOSS_REASON_BUFFER_FULL
        return pb.LOSS_REASON_DISCONNECTED

    def _arena_for(self, buffers: TapBuffers) -> Arena:
        n_mib = self._settings.buffer_mib
        try:
            return Arena(n_mib << 20, pin_memory=buffers.values.is_cuda)
        except RuntimeError as error:  # PyTorch's, of memory that is not there.
            raise CaptureError(
                f"{KEY}.buffer_mib: expected {n_mib} MiB of host memory, got: {error}"
            ) from error

    def _hello(self) -> pb.HelloRequest:
        assert self._stage is not None
        return hello_request(
            self._worker.vllm_config,
            self._settings,
            self._engine,
            stage=self._stage,
        )

    def _on_hello(self, answer: pb.HelloResponse) -> None:
        if self._settings.mode == "pushdown":
            self._on_bank(answer.bank)

    def _on_bank(self, bank: pb.Bank) -> None:
        """
        Leave *bank* for the next step to take; on the sender's thread.

        Raises:
            CaptureError: It does not fit; what was computed before goes on.
        """
        assert self._buffers is not None
        pending = None
        if bank.digest != self._digest:
            pending = host_bank(
                bank.digest,
                list(bank.slices),
                hook_points=self._hook_points,
                elsewhere=self._settings.hook_points,
                k_max=self._settings.k_max,
                d_model=self._worker.vllm_config.model_config.get_hidden_size(),
            ).pinned_for(self._buffers.values.device)
        with self._bank_lock:
            self._pending = pending

    def _next_digest(self) -> str:
        with self._bank_lock:
            return self._digest if self._pending is None else self._pending.digest


def _max_rows(config: Any) -> int:
    """Rows of the largest step, CUDA graph padding included."""
    padded = config.compilation_config.max_cudagraph_capture_size or 0
    return int(max(config.scheduler_config.max_num_batched_tokens, padded))


def _norm_types() -> tuple[type[torch.nn.Module], ...]:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

    return (RMSNorm, GemmaRMSNorm)


def _tensor_parallel_rank() -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())
