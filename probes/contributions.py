# Asked of the one token that a flag is about, and of no other: whatever this costs,
# nothing is paid where nothing is flagged.
"""Which layers and features a token's evidence came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from probes.arrays import Float32
from probes.detector import Detector, evidence_of

MAX_CONTRIBUTIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """
    What one part of a detector said of a token.

    Attributes:
        name: A hook point, ``feature 7`` of an SAE, a member of an ensemble.

        value: In the units of the evidence; negative where it spoke against a flag.

        share: How much of what all parts said, from 0 to 1, whatever the sign.
    """

    name: str
    value: float
    share: float


@runtime_checkable
class Contributing(Detector, Protocol):
    """A detector of several parts, which can say what each of them said."""

    def contributions(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Mapping[str, float]:
        """
        What each part said of one token, by its name; those that said 0 may be missing.

        Args:
            columns: Of shape (1, n_columns); see `Detector.head`.

            activations: By hook point, of shape (1, d_model); empty where only columns
                are at hand.

        Raises:
            ActivationShapeError: The arrays do not fit, or whole activations are
                needed and there are none.
        """
        ...


def only_hook_point(detector: Detector) -> str | None:
    """The one hook point that said it all; None if several, or known parts, did."""
    hook_points = {p.hook_point for p in detector.projections}
    if len(hook_points) != 1 or isinstance(detector, Contributing):
        return None
    return hook_points.pop()


def contributions_of(
    detector: Detector, columns: Float32, activations: Mapping[str, Float32]
) -> Mapping[str, float]:
    """
    What each part of *detector* said of one token; arguments as of `Contributing`.

    Empty of a detector that reads several hook points and can not tell them apart.
    """
    if isinstance(detector, Contributing):
        return detector.contributions(columns, activations)
    hook_point = only_hook_point(detector)
    if hook_point is None:
        return {}
    evidence = evidence_of(detector, columns, activations)
    return {hook_point: float(detector.aggregator.token_scores(evidence)[0])}


def top(said: Mapping[str, float]) -> tuple[Contribution, ...]:
    """
    The parts that said most, at most `MAX_CONTRIBUTIONS`, the largest first.

    >>> [(c.name, c.share) for c in top({"a": 1.0, "b": -3.0, "c": 0.0})]
    [('b', 0.75), ('a', 0.25)]
    """
    largest = max((abs(value) for value in said.values()), default=0.0)
    if not largest:
        return ()
    # In units of the largest, so that no sum overflows.
    total = sum(abs(value) / largest for value in said.values())
    ranked = sorted(said.items(), key=lambda one: -abs(one[1]))
    return tuple(
        Contribution(name=name, value=value, share=abs(value) / largest / total)
        for name, value in ranked[:MAX_CONTRIBUTIONS]
        if value
    )
