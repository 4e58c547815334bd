"""How long a flag takes to /metrics, to the webhook and to a firing alert.

usage: python -m tests.bench.drill [--drills 200] [--daemons 4] [--scrape 5]
           [--evaluation 5]

Real daemons, each with a real webhook receiver, behind one real Prometheus with the
rules of deploy/prometheus and a real Alertmanager. Each daemon is drilled again and
again, all of them at the same time; before each drill a random pause of up to one
scrape and one evaluation, so that drills do not fall into step with either.

Seconds from just before a drill was asked for: until it was durable (the daemon's
clock), seen on /metrics, at the receiver (the receiver's clock), and until
Alertmanager's API has it as firing, looked at ten times a second.
"""

import argparse
import os
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import numpy as np

from service.drilling import run_drill
from tests.alerts.receiver import SECRET, Receiver
from tests.alerts.stack import stack
from tests.service.builders import Place, RunningDaemon, place

BARS = {"/metrics": 1.0, "webhook": 0.5, "alert": 15.0}
"""Seconds, p99."""


@dataclass(frozen=True)
class Drilled:
    """One daemon of the fleet."""

    where: Place
    daemon: RunningDaemon
    receiver: Receiver

    def drill(self, alertmanager: str) -> dict[str, float]:
        """Return the seconds to each step of one drill; infinite if it did not come."""
        began_at = time.time()
        with grpc.insecure_channel(self.where.address) as channel:
            times = run_drill(channel, alertmanager=alertmanager, timeout_seconds=60)
        posts = [p for p in self.receiver.posts if p.fields["id"] == times.drill_id]
        return {
            "durable": times.durable,
            "/metrics": _or_never(times.metrics),
            "webhook": posts[0].at - began_at if posts else float("inf"),
            "alert": _or_never(times.alert),
        }


def _or_never(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds


def with_webhook(where: Place, receiver: Receiver) -> None:
    """Configure *where* to tell *receiver*."""
    (where.folder / "secret").write_text(SECRET)
    where.configure(webhook=f'url = "{receiver.url}"\nsecret_file = "secret"')


def measure(
    n_drills: int, n_daemons: int, scrape_seconds: float, evaluation_seconds: float
) -> dict[str, list[float]]:
    """Return, by step, the seconds of *n_drills* drills."""
    found: list[dict[str, float]] = []
    with ExitStack() as running:
        fleet = []
        for _ in range(n_daemons):
            where = running.enter_context(place())
            receiver = running.enter_context(Receiver())
            with_webhook(where, receiver)
            daemon = running.enter_context(RunningDaemon(where))
            fleet.append(Drilled(where, daemon, receiver))
        both = running.enter_context(
            stack(
                [one.daemon.url for one in fleet],
                scrape_seconds=scrape_seconds,
                evaluation_seconds=evaluation_seconds,
            )
        )
        shares = [
            n_drills // n_daemons + (i < n_drills % n_daemons) for i in range(n_daemons)
        ]

        def drill(one: Drilled, n: int) -> None:
            for _ in range(n):
                time.sleep(random.uniform(0, scrape_seconds + evaluation_seconds))
                found.append(one.drill(both.alertmanager))

        threads = [
            threading.Thread(target=drill, args=(one, n))
            for one, n in zip(fleet, shares, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {step: [one[step] for one in found] for step in found[0]}


def quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return p50, p99 and the longest; no value is made up between two."""
    p50, p99, longest = np.quantile(seconds, [0.5, 0.99, 1.0], method="higher")
    return float(p50), float(p99), float(longest)


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drills", type=int, default=200)
    parser.add_argument("--daemons", type=int, default=4)
    parser.add_argument("--scrape", type=float, default=5.0, help="seconds")
    parser.add_argument("--evaluation", type=float, default=5.0, help="seconds")
    args = parser.parse_args()
    print(f"load before: {os.getloadavg()}")
    found = measure(args.drills, args.daemons, args.scrape, args.evaluation)
    print(
        f"{args.drills} drills on {args.daemons} daemons, scrape {args.scrape:g} s, "
        f"evaluation {args.evaluation:g} s; seconds"
    )
    print("step            p50     p99     max  bar (p99)")
    for step, seconds in found.items():
        p50, p99, longest = quantiles(seconds)
        bar = f"{BARS[step]:g}" if step in BARS else "-"
        print(f"{step:<10} {p50:>8.3f} {p99:>7.3f} {longest:>7.3f}  {bar}")
    print(f"load after: {os.getloadavg()}")


if __name__ == "__main__":
    main()
