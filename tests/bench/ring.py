"""How many bytes a second go through the ring, from one process to another.

usage: OMP_NUM_THREADS=1 python -m tests.bench.ring [--seconds 30] [--sizes 8192 ...]
                                                    [--ring-mib 64] [--cores 0 1]

A writer and a reader, a core each. Both spin, as a wake-up is not what is measured
here; the ring is the daemon's, checksum and copies out included. Before each record is
pushed its words are made anew from its number, in the first and the last words and one
between, and the reader holds all its bytes against what they must be: records from a
few prepared ones, with those words set. What that takes is in the time.

The whole figure takes `--seconds 600 --sizes 262144` (10 minutes, 10^7 records).
"""

import argparse
import os
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from service.ring.memory import create, map_sealed
from service.ring.reader import RingReader
from service.ring.writer import RingWriter

SIZES = (8 << 10, 64 << 10, 256 << 10)
_END = b"end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one size gave."""

    n_payload: int
    n_records: int
    n_mismatches: int
    n_full: int
    seconds: float

    @property
    def gigabytes_per_second(self) -> float:
        """Payload only, 10^9 bytes."""
        return self.n_records * self.n_payload / self.seconds / 1e9


def record(n_payload: int) -> tuple[bytearray, NDArray[np.uint64]]:
    """What every record of this length has, but for its number: bytes, and as words."""
    rng = np.random.default_rng(n_payload)
    held = bytearray(rng.bytes(n_payload))
    return held, np.frombuffer(held, dtype=np.uint64)


def number_words(words: NDArray[np.uint64], number: int) -> None:
    """Write *number* over the first, the last, and a word that depends on it."""
    words[0] = words[-1] = number
    words[1 + number % (len(words) - 2)] ^= np.uint64(number)


def write(
    fd: int, capacity: int, ring_id: int, n_payload: int, seconds: float, core: int
) -> tuple[int, int]:
    """Push records for *seconds*; return how many, and how often it was full."""
    os.sched_setaffinity(0, {core})
    writer = RingWriter(map_sealed(fd, capacity), capacity=capacity, ring_id=ring_id)
    held, words = record(n_payload)
    number, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        number += 1
        at = 1 + number % (len(words) - 2)
        kept = words[at]
        number_words(words, number)
        while not writer.push([held]):
            pass
        words[at] = kept
    while not writer.push([_END]):
        pass
    return number, writer.n_full


def read(reader: RingReader, n_payload: int) -> tuple[int, int]:
    """Read until the end; return how many records, and how many were not as pushed."""
    held, expected = record(n_payload)
    n_records = n_mismatches = 0
    while True:
        found = reader.read()
        if found is None:
            continue
        if found == _END:
            return n_records, n_mismatches
        n_records += 1
        at = 1 + n_records % (len(expected) - 2)
        kept = expected[at]
        number_words(expected, n_records)
        n_mismatches += found != held
        expected[at] = kept


def _write_apart(
    pipe: Connection, fd: int, ring: tuple[int, int], n: int, seconds: float, core: int
) -> None:
    pipe.send(write(fd, *ring, n, seconds, core))


def measure(
    n_payload: int, seconds: float, ring_bytes: int, cores: tuple[int, int]
) -> Result:
    """Run a writer and a reader, and compare what went in with what came out."""
    fd, memory, ring_id = create(ring_bytes)
    reader = RingReader(memory, capacity=ring_bytes, ring_id=ring_id)
    here, there = get_context("fork").Pipe()
    ring = (ring_bytes, ring_id)
    process = get_context("fork").Process(
        target=_write_apart, args=(there, fd, ring, n_payload, seconds, cores[0])
    )
    allowed = os.sched_getaffinity(0)
    process.start()
    os.close(fd)
    os.sched_setaffinity(0, {cores[1]})
    while not reader.has_next():
        pass
    began = time.monotonic()
    n_records, n_mismatches = read(reader, n_payload)
    took = time.monotonic() - began
    n_pushed, n_full = here.recv()
    process.join()
    os.sched_setaffinity(0, allowed)
    return Result(
        n_payload=n_payload,
        n_records=n_records,
        n_mismatches=n_mismatches + abs(n_pushed - n_records),
        n_full=n_full,
        seconds=took,
    )


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--ring-mib", type=int, default=64)
    parser.add_argument("--cores", type=int, nargs=2, default=(0, 1))
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()}; ring {args.ring_mib} MiB")
    print(
        f"{'bytes':>8} {'records':>12} {'GB/s':>8} {'records/s':>11} {'mismatches':>11}"
    )
    for n_payload in args.sizes:
        result = measure(
            n_payload, args.seconds, args.ring_mib << 20, tuple(args.cores)
        )
        print(
            f"{n_payload:>8} {result.n_records:>12,} "
            f"{result.gigabytes_per_second:>8.2f} "
            f"{result.n_records / result.seconds:>11,.0f} {result.n_mismatches:>11}",
            flush=True,
        )


if __name__ == "__main__":
    main()
