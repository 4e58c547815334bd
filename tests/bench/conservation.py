"""The books in a long run: expected = scored + shadowed + lost, exactly.

usage: python -m tests.bench.conservation [--steps 100000]

Runs the state machine of tests/monitor/conservation.py until it has done so many steps,
and prints how many. The first that does not balance ends it with its shortest example.
"""

import argparse

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.monitor.conservation import Conservation

_EACH = 100


def main() -> None:
    """Run, and print the number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()
    while Conservation.n_steps < args.steps:
        left = args.steps - Conservation.n_steps
        run_state_machine_as_test(
            Conservation,
            settings=settings(
                max_examples=max(1, min(500, left // _EACH)),
                stateful_step_count=_EACH,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        print(f"{Conservation.n_steps} steps, balanced after each", flush=True)


if __name__ == "__main__":
    main()
