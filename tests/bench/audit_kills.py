"""
Whether a record loses what it acknowledged, or keeps half of it, when it is killed.

usage: python -m tests.bench.audit_kills [--kills 2000] [--records 1000000] [--seed 0]

A child writes batches to a record and says of each when it is durable; it is killed
with SIGKILL, every other time at a random moment, else in the call of the commit path
(a write, a sync, a truncation) whose turn it is. Then the record is opened, which is
timed, every flag that was acknowledged is looked for, and the whole is verified. At the
end a record of that many flags is killed and opened. Needs a C compiler for the shim
that counts calls. Prints one JSON line.
"""

import argparse
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from service.daemon.audit.checkpoints import Verifier
from service.daemon.audit.reader import AuditReader
from service.daemon.audit.records import Entries
from service.daemon.audit.store import PUBLIC_KEY
from service.daemon.audit.verifying import verify
from tests.service.recording import flag, open_store, summary

_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>
static long left = -1;
static long n_calls = 0;
void kill_at(long n) { left = n; }
long count_calls(void) { return n_calls; }
static void step(void) {
    n_calls++;
    if (left > 0 && --left == 0) kill(getpid(), SIGKILL);
}
#define REAL(name) static __typeof__(name) *real; \\
    if (!real) real = (__typeof__(name) *) dlsym(RTLD_NEXT, #name); step()
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) {
    REAL(pwrite64); return real(f, b, n, o);
}
ssize_t pwrite(int f, const void *b, size_t n, off_t o) {
    REAL(pwrite); return real(f, b, n, o);
}
int fdatasync(int f) { REAL(fdatasync); return real(f); }
int fsync(int f) { REAL(fsync); return real(f); }
int ftruncate64(int f, off64_t n) { REAL(ftruncate64); return real(f, n); }
int ftruncate(int f, off_t n) { REAL(ftruncate); return real(f, n); }
"""
_N_CALLS = 120  # Of two commits and more.
_N_FRESH = 40  # Kills until a record begins anew: it has then some thousand leaves.


def build_shim(folder: Path) -> Path:
    """Compile what counts the calls of the commit path, and kills in one of them."""
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(_SHIM)
    files = ["-o", str(library), str(source)]
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", *files, "-ldl"], check=True)
    return library


def write_batches(folder: Path, first: int, acknowledged: int, call: int) -> None:
    """
    Write batches until killed, in a process of its own.

    Args:
        folder: Of the record.
        first: Number of the first request.
        acknowledged: A pipe; gets the number of the first request not yet durable.
        call: The call of the commit path to be killed in; 0 for none.
    """
    shim = ctypes.CDLL(None)
    with open_store(folder) as store:
        store.begin(time.time())
        shim.kill_at(call)
        while True:
            last = first + 1 + first % 7
            names = [f"r{i}" for i in range(first, last)]
            flags = [flag(name) for name in names]
            ends = [summary(name, "max") for name in names]
            store.write(Entries(flags=flags, summaries=ends), time.time())
            first = last
            os.write(acknowledged, b"%d\n" % first)


def kill_once(folder: Path, first: int, *, call: int, seconds: float) -> int:
    """Kill a child at *call*, or after *seconds*; return what it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            write_batches(folder, first, writing, call)
        finally:
            os._exit(1)
    os.close(writing)
    if not call:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = pipe.read().split()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    return int(said[-1]) if said else first


@dataclass(slots=True)
class Tally:
    """What kills came to."""

    n_kills: int = 0
    n_acknowledged: int = 0
    n_lost: int = 0
    n_half: int = 0
    slowest_open_seconds: float = 0.0


def measure(n_kills: int, seed: int) -> Tally:
    """Kill *n_kills* times; return what was counted."""
    rng, tally = random.Random(seed), Tally()
    while tally.n_kills < n_kills:
        with tempfile.TemporaryDirectory() as name:
            folder, first = Path(name) / "audit", 0
            with open_store(folder) as store:
                store.begin(time.time())
            for _ in range(min(_N_FRESH, n_kills - tally.n_kills)):
                i = tally.n_kills
                call = i // 2 % _N_CALLS + 1 if i % 2 else 0
                seconds = rng.uniform(0.02, 0.12)
                said = kill_once(folder, first, call=call, seconds=seconds)
                tally.n_acknowledged += said - first
                first = look(folder, said, tally)
    return tally


def look(folder: Path, acknowledged: int, tally: Tally) -> int:
    """Open what was killed and count; return the first request that is not in it."""
    tally.n_kills += 1
    began = time.perf_counter()
    with open_store(folder):
        seconds = time.perf_counter() - began
    tally.slowest_open_seconds = max(tally.slowest_open_seconds, seconds)
    found = {row.request_id for row in AuditReader(folder).flags(limit=1 << 30)}
    tally.n_lost += len({f"r{n}" for n in range(acknowledged)} - found)
    verifier = Verifier.parse((folder / PUBLIC_KEY).read_text())
    tally.n_half += len(verify(folder, verifier).findings)
    # A batch may be durable that was not acknowledged any more.
    return max((int(name[1:]) + 1 for name in found), default=0)


def measure_recovery(n_records: int) -> float:
    """Return the seconds that a killed record of *n_records* takes to open."""
    with tempfile.TemporaryDirectory() as name:
        folder, step = Path(name) / "audit", 2_000
        with open_store(folder) as store:
            for start in range(0, n_records, step):
                stop = min(start + step, n_records)
                flags = [flag(f"q{i}") for i in range(start, stop)]
                store.write(Entries(flags=flags), time.time())
        kill_once(folder, 0, call=0, seconds=1.0)
        began = time.perf_counter()
        with open_store(folder):
            return time.perf_counter() - began


def main() -> int:
    """Measure; 0 if nothing was lost or half, and recovery took a second at most."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=2_000)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if "shim.so" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as folder:
            preload = {"LD_PRELOAD": str(build_shim(Path(folder)))}
            command = [sys.executable, "-m", "tests.bench.audit_kills", *sys.argv[1:]]
            return subprocess.run(
                command, env=os.environ | preload, check=False
            ).returncode
    tally = measure(args.kills, args.seed)
    seconds = measure_recovery(args.records)
    print(
        json.dumps(vars(args) | asdict(tally) | {"recovery_seconds": round(seconds, 4)})
    )
    return int(bool(tally.n_lost or tally.n_half) or seconds > 1.0)


if __name__ == "__main__":
    sys.exit(main())
