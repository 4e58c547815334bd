"""What the engine's thread copies, it copies without giving the interpreter away."""

import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from service.capture.held_copies import copy_blocks, copy_items

N = 4000
# Made once: numpy gives the interpreter away to clear memory.
BUFFERS = np.zeros((2, N + 1, 3), np.float32)
ALL = np.zeros((2, N, 3), np.float32)
SOME = np.zeros((2, N, 2), np.float32)
IDS, LONG_IDS = np.zeros(N, np.int32), np.zeros(N, np.int64)


@pytest.mark.parametrize(
    "copy",
    [
        lambda: copy_blocks(ALL, BUFFERS),
        lambda: copy_blocks(SOME, BUFFERS),
        lambda: copy_items(IDS, LONG_IDS),
    ],
    ids=["all columns", "some columns", "another type"],
)
def test_nobody_gets_between(copy: Callable[[], None]) -> None:
    """Another thread that waits for the interpreter gets no turn during a copy."""
    n_turns, is_over = 0, threading.Event()

    def take_turns() -> None:
        nonlocal n_turns
        while not is_over.is_set():
            n_turns += 1
            time.sleep(0)

    other = threading.Thread(target=take_turns)
    before = sys.getswitchinterval()
    other.start()
    try:
        sys.setswitchinterval(1000)  # From here on it is only given, not taken,
        time.sleep(0.02)  # once the other has begun to wait anew.
        began_with = n_turns
        for _ in range(2000):
            copy()
        ended_with = n_turns
    finally:
        sys.setswitchinterval(before)
        is_over.set()
        other.join()

    assert 0 < began_with == ended_with
