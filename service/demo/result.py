"""What the demo found, against what it planted: counted and printed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.request_ids import client_id

BENIGN = "benign"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """
    The demo's outcome.

    Attributes:
        planted: Requests by behaviour, ``"benign"`` included.

        flagged: By detector, flagged requests by behaviour.

        n_tokens_expected: Tokens that the engine scheduled.

        n_tokens_scored: Of these.

        n_tokens_shadowed: From the prefix cache, judged as when they were computed.

        n_tokens_lost: By reason.

        n_requests: Finished requests by verdict.
    """

    planted: Mapping[str, int]
    flagged: Mapping[str, Mapping[str, int]]
    n_tokens_expected: int
    n_tokens_scored: int
    n_tokens_shadowed: int
    n_tokens_lost: Mapping[str, int]
    n_requests: Mapping[str, int]

    @property
    def coverage(self) -> float:
        """Share of tokens that were scored or shadowed."""
        if not self.n_tokens_expected:
            return 0.0
        n_judged = self.n_tokens_scored + self.n_tokens_shadowed
        return n_judged / self.n_tokens_expected

    def failures(self) -> list[str]:
        """Return what must not happen and did, a sentence each."""
        problems = []
        n_prompts = sum(self.planted.values())
        if self.n_requests.get("scanned", 0) < n_prompts or self.coverage < 1:
            problems.append(
                f"coverage is below 100 %: {self.n_requests.get('scanned', 0)} of "
                f"{n_prompts} requests were scanned, {self.n_tokens_scored} of "
                f"{self.n_tokens_expected} tokens scored"
            )
        problems += [
            f"the planted behaviour {behaviour!r} was seen by no detector"
            for behaviour in self.planted
            if behaviour != BENIGN
            and not any(by.get(behaviour) for by in self.flagged.values())
        ]
        return problems


def count_flags(
    flags: Iterable[tuple[str, str]],
    behaviours: Mapping[str, str],
    detectors: list[str],
) -> dict[str, dict[str, int]]:
    """
    Count flagged requests by detector and behaviour.

    Args:
        flags: (request id as vLLM has it, detector).

        behaviours: By the id that the client sent.

        detectors: All of them, also those that flagged nothing.
    """
    counts = {name: Counter[str]() for name in detectors}
    for request_id, detector in flags:
        behaviour = behaviours.get(client_id(request_id))
        if behaviour is not None:
            counts[detector][behaviour] += 1
    return {name: dict(counter) for name, counter in counts.items()}


def table(result: DemoResult) -> str:
    """Return the outcome as lines of text: a detector a row, a behaviour a column."""
    behaviours = sorted(result.planted, key=lambda b: (b == BENIGN, b))
    width = max(16, *(len(name) for name in result.flagged)) + 2
    lines = ["".ljust(width) + "".join(f"{b:>14}" for b in behaviours)]
    lines.append(
        "planted".ljust(width) + "".join(f"{result.planted[b]:>14}" for b in behaviours)
    )
    lines.append("-" * (width + 14 * len(behaviours)))
    for detector, by in result.flagged.items():
        cells = "".join(f"{by.get(b, 0):>14}" for b in behaviours)
        lines.append(detector.ljust(width) + cells)
    lost = {reason: n for reason, n in result.n_tokens_lost.items() if n}
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in result.n_requests.items())
    lines += [
        "",
        f"coverage   {result.n_tokens_scored} of {result.n_tokens_expected} tokens "
        f"scored, {result.n_tokens_shadowed} shadowed ({result.coverage:.2%}), "
        f"lost: {lost or 'none'}",
        f"requests   {verdicts}",
    ]
    return "\n".join(lines)
