"""How long one push takes on the engine's thread, whatever becomes of the daemon.

usage: OMP_NUM_THREADS=1 python -m tests.bench.push [--pushes 2000] [--interval-ms 5]
           [--spin] [--ways ring grpc] [--states healthy stopped ...]

A push is what `CaptureWorker.after_step` does once the rows are known: copy them out of
the taps' buffers, describe the step, and put it into the outbox. What carries it, into
the ring or by gRPC, is the sender's thread, with which it shares the interpreter.

The engine's thread has a core to itself, as in a server; the sender's threads and a
real daemon, in a process of its own, share the other. The daemon scores what comes:
two hook points of 64 columns; 16 rows of 16 requests (8 KiB), and 512 rows of 16 or of
256 requests (256 KiB). It is healthy; stopped (SIGSTOP); killed (SIGKILL); its disk
full (RLIMIT_FSIZE, of which it dies); or 100 times slower (SIGCONT for 1 ms in 100).

Between pushes the thread sleeps, and finds cold caches; with --spin it multiplies small
matrices, as an engine computes. On a machine with other work `chrt -f 20` in front
keeps that from counting.
"""

import argparse
import contextlib
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.capture.arena import Arena
from service.capture.outbox import Outbox
from service.capture.requests import RequestFacts
from service.capture.rows import Rows
from service.capture.sender import Sender
from service.capture.settings import Transport
from service.capture.snapshot import Snapshooter
from service.capture.step import Step
from service.capture.tap import TapBuffers
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import D_MODEL, bank
from tests.service.builders import RunningDaemon, eventually, hello, place

WAYS: tuple[Transport, ...] = ("ring", "grpc")
STATES = ("healthy", "stopped", "killed", "full", "slow")
SHAPES = ((16, 16), (512, 16), (512, 256))
WIDTH = 64
N_SITES = 2
_BUFFER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """
    Of one push, in seconds: by the clock, and of the thread's processor time.

    Where the first is much longer the thread was put off, or waited.
    """

    p50: float
    p99: float
    longest: float
    cpu_p50: float
    cpu_p99: float


class Engine:
    """The part of the capture worker that a push is, without vLLM."""

    def __init__(
        self,
        address: str,
        way: Transport,
        n_rows: int,
        n_requests: int,
        *,
        is_spinning: bool = False,
    ) -> None:
        self._is_spinning = is_spinning
        self._work = torch.ones(192, 192)
        self.outbox = Outbox(_BUFFER_BYTES)
        self.sender = Sender(
            outbox=self.outbox,
            address=address,
            hello=hello,
            on_hello=lambda _: None,
            on_bank=lambda _: None,
            bank_digest=lambda: bank().digest,
            transport=way,
        )
        self._buffers = TapBuffers.allocate(
            n_sites=N_SITES,
            max_rows=n_rows,
            d_model=D_MODEL,
            k_max=WIDTH,
            device=torch.device("cpu"),
        )
        self._buffers.values.zero_()
        self._buffers.squared_norms.fill_(1.0)
        arena = Arena(_BUFFER_BYTES, pin_memory=False)
        self._snapshooter = Snapshooter(self._buffers, arena)
        self._digest = bank().digest
        self._n_rows, self._n_each = n_rows, n_rows // n_requests
        self._names = tuple(f"chatcmpl-{i:032x}-{i:08x}" for i in range(n_requests))
        # As vLLM's buffers have them.
        self._token_ids = torch.zeros(n_rows, dtype=torch.int32)
        self._slots = torch.zeros(n_rows, dtype=torch.int64)
        self._facts = tuple(RequestFacts(n_prompt_tokens=1) for _ in self._names)
        self._step = 0

    def rows(self) -> Rows:
        """The next rows of every request."""
        n_requests = len(self._names)
        return Rows(
            request_ids=self._names,
            n_rows=np.full(n_requests, self._n_each),
            first_positions=np.full(n_requests, self._step * self._n_each),
            token_ids=self._token_ids,
        )

    def push(self, rows: Rows) -> None:
        """One step's."""
        self._step += 1
        step = Step(
            step=self._step,
            bank_digest=self._digest,
            captured_at=time.time(),
            n_rows_expected=self._n_rows,
            rows=rows,
            facts=self._facts,
        )
        step.piece = self._snapshooter.reserve(self._n_rows, WIDTH)
        if step.piece is None:
            self.outbox.lose(step, pb.LOSS_REASON_BUFFER_FULL)
            return
        self._snapshooter.take_into(step, rows.token_ids, self._slots, WIDTH)
        self.outbox.put(step, pb.LOSS_REASON_BUFFER_FULL)

    def _wait(self, seconds: float) -> None:
        if not self._is_spinning:
            time.sleep(seconds)
            return
        # As an engine that computes: the core and its caches stay the engine's, and
        # the GIL is free, most of the time.
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            torch.mm(self._work, self._work)

    def times(self, n_pushes: int, interval_seconds: float) -> Times:
        """Push at a steady pace."""
        taken, cpu = [], []
        for _ in range(n_pushes):
            self._wait(interval_seconds)
            rows = self.rows()
            # The clock of the processor's time is a system call, in which a busy
            # machine may put the thread off: outside of what is timed.
            cpu_began = time.thread_time()
            began = time.perf_counter()
            self.push(rows)
            taken.append(time.perf_counter() - began)
            cpu.append(time.thread_time() - cpu_began)
        p50, p99, longest = np.percentile(taken, [50, 99, 100]).tolist()
        cpu_p50, cpu_p99 = np.percentile(cpu, [50, 99]).tolist()
        return Times(
            p50=p50,
            p99=p99,
            longest=longest,
            cpu_p50=cpu_p50,
            cpu_p99=cpu_p99,
        )


@contextlib.contextmanager
def in_state(daemon: RunningDaemon, state: str) -> Iterator[None]:
    """Have *daemon* be in *state* for a while."""
    process, is_over = daemon.process, threading.Event()
    slowing = threading.Thread(target=_slow, args=(process.pid, is_over))
    if state == "stopped":
        process.send_signal(signal.SIGSTOP)
    elif state == "killed":
        daemon.stop(signal.SIGKILL)
    elif state == "full":
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    elif state == "slow":
        slowing.start()
    try:
        yield
    finally:
        is_over.set()
        if state == "slow":
            slowing.join()
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)


def _slow(pid: int, is_over: threading.Event) -> None:
    # In the measured process, but asleep: two system calls in 100 ms.
    while not is_over.is_set():
        os.kill(pid, signal.SIGSTOP)
        is_over.wait(0.099)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)


def measure(
    way: Transport,
    shape: tuple[int, int],
    state: str,
    n_pushes: int,
    interval_seconds: float,
    cores: tuple[int, int] | None = None,
    is_spinning: bool = False,
) -> Times:
    """Start a daemon and an engine, bring the daemon into *state*, and push."""
    with place() as where, RunningDaemon(where) as daemon:
        if cores is not None:
            os.sched_setaffinity(daemon.process.pid, {cores[1]})
        engine = Engine(where.address, way, *shape, is_spinning=is_spinning)
        engine.sender.start()
        eventually(lambda: engine.sender.is_connected, "connected")
        if cores is not None:
            for thread in [int(p.name) for p in Path("/proc/self/task").iterdir()]:
                if thread != threading.get_native_id():
                    os.sched_setaffinity(thread, {cores[1]})
        engine.times(50, interval_seconds)
        eventually(engine.outbox.is_empty, "warm")
        gc.collect()
        gc.freeze()  # As vLLM's worker does after its warm-up.
        with in_state(daemon, state):
            times = engine.times(n_pushes, interval_seconds)
        if state == "full":
            assert daemon.process.wait(30) != 0, "it went on without a record"
        engine.sender.close(0.2)
    return times


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=2000)
    parser.add_argument("--interval-ms", type=float, default=5.0)
    parser.add_argument("--spin", action="store_true", help="compute, do not sleep")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cores = (args.cores[0], args.cores[1])
    os.sched_setaffinity(0, {cores[0]})  # Of this thread: the engine's.
    print(f"load before: {os.getloadavg()}; us of one push, {args.pushes} each")
    print("way      KiB requests daemon       p50     p99     max  cpu p50  cpu p99")
    for way in args.ways:
        for n_rows, n_requests in SHAPES:
            for state in args.states:
                found = measure(
                    way,
                    (n_rows, n_requests),
                    state,
                    args.pushes,
                    args.interval_ms / 1e3,
                    cores,
                    args.spin,
                )
                print(
                    f"{way:<7} {n_rows * N_SITES * WIDTH * 4 // 1024:>4} "
                    f"{n_requests:>8} {state:<8} {found.p50 * 1e6:>7.0f} "
                    f"{found.p99 * 1e6:>7.0f} {found.longest * 1e6:>7.0f} "
                    f"{found.cpu_p50 * 1e6:>8.0f} {found.cpu_p99 * 1e6:>8.0f}",
                    flush=True,
                )
    print(f"load after: {os.getloadavg()}")


if __name__ == "__main__":
    main()
