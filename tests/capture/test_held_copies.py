"""What the engine's thread copies, it copies without giving the interpreter away."""

import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from service.capture.arena import Arena
from service.capture.held_copies import copy_blocks
from tests.capture.test_arena import make_snapshooter, take

N = 4000
# Made once: numpy gives the interpreter away to clear memory.
BUFFERS = np.zeros((2, N + 1, 3), np.float32)
SOME = np.zeros((2, N, 2), np.float32)
TOKENS = torch.arange(N)


def snapshots() -> Callable[[], None]:
    """Return what takes one of all columns, as a step does."""
    snapshooter = make_snapshooter(Arena(1 << 20, pin_memory=False), N)
    step = take(snapshooter, 1, TOKENS, TOKENS, width=3)
    return lambda: snapshooter.take_into(step, TOKENS, TOKENS, 3)


@pytest.mark.parametrize(
    "copy",
    [
        snapshots(),
        lambda: copy_blocks(SOME, BUFFERS),
    ],
    ids=["all columns", "some columns"],
)
def test_nobody_gets_between(copy: Callable[[], None]) -> None:
    """Another thread that waits for the interpreter gets no turn during a copy."""
    n_turns, is_over = 0, threading.Event()

    def take_turns() -> None:
        nonlocal n_turns
        while not is_over.is_set():
            n_turns += 1
            time.sleep(1e-5)

    other = threading.Thread(target=take_turns)
    before = sys.getswitchinterval()
    other.start()
    try:
        # From here on the interpreter is only given, not taken.
        sys.setswitchinterval(1000)
        while n_turns == 0:
            time.sleep(0.01)
        time.sleep(0.02)  # The other begins to wait anew, for as long.
        began_with = n_turns
        for _ in range(2000):
            copy()
        ended_with = n_turns
    finally:
        sys.setswitchinterval(before)
        is_over.set()
        other.join()

    assert began_with == ended_with


@pytest.mark.parametrize("shape", [(1, 4), (3, 3), (1, 4000), (1001, 3)])
def test_what_is_not_there_is_not_copied(shape: tuple[int, int]) -> None:
    """More rows or values than the buffers have would be the next hook point's."""
    few = np.zeros((2, 2 if shape[0] < 1000 else 1000, 3), np.float32)

    with pytest.raises(ValueError, match="rows of"):
        copy_blocks(np.zeros((2, *shape), np.float32), few)
