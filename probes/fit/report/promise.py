"""Whether the promise is kept: benign requests flagged, by length and by p-value."""

from dataclasses import dataclass

import numpy as np

from probes.bundle import Bundle
from probes.fit.report.scored import Scored, Share

_P_LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin:
    """
    Benign requests of one length bin.

    Attributes:
        above: Longer than this many tokens ...

        up_to: ... and at most this many.

        flagged: Of all of them, those that a gate turned away included.
    """

    above: int
    up_to: int
    flagged: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class PLevel:
    """Of benign requests, how many had a p-value of *level* or less."""

    level: float
    at_or_below: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """
    The promise, and what happened.

    Attributes:
        alpha: What was promised; None where thresholds were set by hand.

        guarantee: "marginal", "pac", or "none".

        confidence: Of "pac"; 0 otherwise.

        flagged: Of all benign requests that are not too long.

        by_length: By length bin.

        p_values: Which share of benign requests has a p-value at or below a level;
            that share is at most the level, on average.
    """

    alpha: float | None
    guarantee: str
    confidence: float
    flagged: Share
    by_length: tuple[LengthBin, ...]
    p_values: tuple[PLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstained:
    """
    Requests of one kind without an answer.

    Attributes:
        kind: Which.

        n_requests: In all.

        too_long: Longer than all that the calibration rests on.

        unlike_calibration: Turned away by a gate.
    """

    kind: str
    n_requests: int
    too_long: int
    unlike_calibration: int


def promise_of(bundle: Bundle, scored: Scored) -> Promise:
    """What *bundle* promises of benign requests, and what *scored* shows."""
    evidence = bundle.calibration.evidence
    chosen = scored.is_promised
    is_flagged = np.asarray(scored.judged.is_flagged[chosen].any(axis=1))
    bins = scored.judged.bins[chosen]
    longest = bundle.calibration.longest.tolist()
    p_values = scored.judged.p_values[chosen]
    return Promise(
        alpha=evidence.alpha if evidence else None,
        guarantee=evidence.guarantee if evidence else "none",
        confidence=evidence.confidence if evidence else 0.0,
        flagged=Share.counted(is_flagged),
        by_length=tuple(
            LengthBin(
                above=above,
                up_to=up_to,
                flagged=Share.counted(is_flagged[bins == k]),
            )
            for k, (above, up_to) in enumerate(
                zip([0, *longest[:-1]], longest, strict=True)
            )
        ),
        p_values=tuple(
            PLevel(level=level, at_or_below=Share.counted(p_values <= level))
            for level in (_P_LEVELS if evidence else ())
        ),
    )


def abstentions(bundle: Bundle, scored: Scored) -> list[Abstained]:
    """By kind, the benign one first."""
    is_too_long = scored.judged.bins >= bundle.calibration.n_bins
    found = []
    for kind in [scored.benign, *scored.other_kinds]:
        is_kind = scored.kinds == kind
        found.append(
            Abstained(
                kind=kind,
                n_requests=int(is_kind.sum()),
                too_long=int((is_kind & is_too_long).sum()),
                unlike_calibration=int(
                    np.sum(is_kind & ~is_too_long & scored.judged.is_unlike)
                ),
            )
        )
    return found
