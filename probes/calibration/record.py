# A request of n tokens is held against one boundary for each detector. With S(t) the
# statistic after t tokens and k(t) the length bin of t,
#
#     height(t) = (S(t) - centre[k]) / scale[k]
#     peak      = max of height over the request so far (a monotone detector's), or
#                 the last height (another's)
#
# - while it runs, a monotone detector flags once peak > running_level[k]
# - when it has ended in bin j, each detector flags if peak > final_level[j]
#
# running_level never rises with k and is nowhere below final_level, so a flag that was
# raised on the way is one that the end would have raised: the promise is made at the
# end, for each bin on its own, and kept on the way however a request is cut.
"""Boundaries over length with a guarantee, and the evidence they rest on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64, Int64, check_array
from probes.calibration.lengths import bins_of

BUDGETS = ("even", "weighted", "learnt")
GUARANTEES = ("marginal", "pac")

NO_LIMIT = 1 << 40
"""Tokens: no request is as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationEvidence:
    """
    What the promise of a calibration rests on.

    Attributes:
        alpha: Of benign requests, the share that the whole set flags at most.

        guarantee: "marginal": on average over calibration sets; "pac": with
            *confidence* over them, in every bin.

        confidence: Of "pac", in (0, 1); 0 of "marginal".

        budget: How alpha is split over the detectors: "even" and "weighted" give each
            its own share; "learnt" holds the set's highest peak against one level,
            scaled on a separate split.

        shares: Of alpha, by detector, in order; all of it each where it is "learnt",
            none of it for a gate.

        gate_share: Of benign requests, those that each gate turns away at most; 0
            where there is none.

        dataset_sha256: Digest of the data set.

        seed: Of the split.

        n_learnt: Benign requests that bins, centres and scales were learnt on.

        n_benign: By bin, others that the levels were chosen on.

        n_checked: By bin, others again that the promise was checked on; 0 if none.

        n_flagged: By bin, how many of these are flagged.

        realised_low: Lower end of the 95 % interval of the rate that they show
            (Clopper and Pearson 1934); 0 where there are none.

        realised_high: Its upper end; 1 where there are none.
    """

    alpha: float
    guarantee: str
    confidence: float
    budget: str
    shares: tuple[float, ...]
    gate_share: float
    dataset_sha256: str
    seed: int
    n_learnt: int
    n_benign: tuple[int, ...]
    n_checked: tuple[int, ...]
    n_flagged: tuple[int, ...]
    realised_low: float
    realised_high: float

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        _check_choice("guarantee", self.guarantee, GUARANTEES)
        _check_choice("budget", self.budget, BUDGETS)
        is_pac = self.guarantee == "pac"
        if not (0 < self.confidence < 1 if is_pac else self.confidence == 0):
            raise ValueError(
                f"confidence: expected {'one in (0, 1)' if is_pac else '0'} of a "
                f"{self.guarantee} guarantee, got {self.confidence}"
            )
        if any(
            not 0 <= flagged <= checked
            for flagged, checked in zip(self.n_flagged, self.n_checked, strict=True)
        ):
            raise ValueError(
                f"n_flagged: expected 0 to n_checked in each bin, "
                f"got {list(self.n_flagged)} of {list(self.n_checked)}"
            )
        if len(self.n_benign) != len(self.n_checked) or min(self.n_benign) < 1:
            raise ValueError(
                f"n_benign: expected at least 1 in each of {len(self.n_checked)} bins, "
                f"got {list(self.n_benign)}"
            )

    @property
    def realised(self) -> float:
        """Share of the checked requests that is flagged; NaN where none was."""
        n_checked = sum(self.n_checked)
        return sum(self.n_flagged) / n_checked if n_checked else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """
    What a request's statistics are held against, for each detector and length.

    Attributes:
        detectors: Names, in order.

        gates: Names of detectors that do not flag: above its level, a request is
            unlike those that the calibration rests on, and gets no score.

        longest: Longest length of each bin in tokens scored, int64 (n_bins,), rising.

        centre: What is usual there, float64 (n_bins, n_detectors).

        scale: The unit of height, float64 (n_bins, n_detectors), above 0.

        running_level: float64 (n_bins, n_detectors); a running request is flagged
            above it.

        final_level: float64 (n_bins, n_detectors); an ended one is flagged above it.

        reference: Peaks of the benign requests that the levels were chosen on, each
            column rising within a bin, float64 (n_benign, n_detectors); -inf where a
            detector counted no token. Empty for thresholds that were set by hand.

        joint_reference: The highest peak of each but the gates', rising within a bin,
            float64 (n_benign,).

        reference_offsets: Bin k has the rows from ``reference_offsets[k]`` up to
            ``reference_offsets[k + 1]``, int64 (n_bins + 1,).

        evidence: What the promise rests on; None where thresholds were set by hand
            and nothing is promised.
    """

    detectors: tuple[str, ...]
    gates: tuple[str, ...]
    longest: Int64
    centre: Float64
    scale: Float64
    running_level: Float64
    final_level: Float64
    reference: Float64
    joint_reference: Float64
    reference_offsets: Int64
    evidence: CalibrationEvidence | None

    def __post_init__(self) -> None:
        n_bins, n_detectors = len(self.longest), len(self.detectors)
        if len(set(self.detectors)) < n_detectors or not self.flagging.any():
            raise ValueError(
                f"detectors: expected different ones, not all of them gates, "
                f"got {list(self.detectors)}"
            )
        if unknown := set(self.gates) - set(self.detectors):
            raise ValueError(
                f"gates: expected some of {list(self.detectors)}, got {min(unknown)!r}"
            )
        check_array("longest", self.longest, ("n_bins",), np.int64)
        if not n_bins or self.longest[0] < 1 or (np.diff(self.longest) < 1).any():
            raise ValueError(
                f"longest: expected rising lengths from 1, got {self.longest.tolist()}"
            )
        for name in ("centre", "scale", "running_level", "final_level"):
            check_array(name, getattr(self, name), (n_bins, n_detectors), np.float64)
        if (self.scale <= 0).any():
            raise ValueError(f"scale: expected all above 0, got {self.scale.min()}")
        if (np.diff(self.running_level, axis=0) > 0).any():
            raise ValueError("running_level: expected none to rise with length")
        if (self.running_level < self.final_level).any():
            raise ValueError("running_level: expected none below final_level")
        self._check_reference(n_bins, n_detectors)
        evidence = self.evidence
        if evidence is not None and (
            (len(evidence.n_benign), len(evidence.shares)) != (n_bins, n_detectors)
        ):
            raise ValueError(
                f"evidence: expected n_benign of {n_bins} bins and shares of "
                f"{n_detectors} detectors, got {len(evidence.n_benign)} and "
                f"{len(evidence.shares)}"
            )

    @property
    def n_bins(self) -> int:
        return len(self.longest)

    @property
    def flagging(self) -> NDArray[np.bool_]:
        """Which detectors flag, (n_detectors,): all but the gates."""
        return ~np.isin(self.detectors, self.gates)

    def bins_of(self, n_tokens: Int64) -> Int64:
        """The bin of each length; `n_bins` where it is beyond all that was seen."""
        return bins_of(self.longest, n_tokens)

    def heights(self, statistics: Float64, bins: Int64) -> Float64:
        """*statistics* (n, n_detectors) of requests in *bins* (n,), comparable."""
        return (statistics - self.centre[bins]) / self.scale[bins]

    def final_thresholds(self) -> Float64:
        """Boundary at a request's end in detectors' units, (n_bins, n_detectors)."""
        return self.centre + self.scale * self.final_level

    def thresholds_text(self, detector: str) -> str:
        """
        Boundary at a request's end, for people: ``1.25 up to 64 tokens, ...``.

        Without lengths where there is one bin for all.
        """
        column = self.final_thresholds()[:, self.detectors.index(detector)]
        if len(column) == 1:
            return f"{column[0]:g}"
        return ", ".join(
            f"{threshold:g} up to {length} tokens"
            for threshold, length in zip(column, self.longest, strict=True)
        )

    def p_values(self, peaks: Float64, bin_index: int) -> Float64:
        """
        How usual *peaks* (n_detectors,) are for ended benign requests of one bin.

        ``(1 + #{reference >= peak}) / (n + 1)`` of each detector (Vovk et al. 2005):
        at most p with probability p, for any p, if the request is benign.

        Returns:
            Of shape (n_detectors,); NaN where thresholds were set by hand.
        """
        return self.two_sided(peaks, bin_index)[:, 0]

    def two_sided(self, peaks: Float64, bin_index: int) -> Float64:
        """As `p_values`, from above and from below, (n_detectors, 2)."""
        rows = self.reference[self._rows_of(bin_index)]
        if not len(rows):
            return np.full((len(self.detectors), 2), np.nan)
        n_beyond = np.column_stack(
            [(rows >= peaks).sum(axis=0), (rows <= peaks).sum(axis=0)]
        )
        return (1 + n_beyond) / (len(rows) + 1)

    def request_p_value(self, peaks: Float64, bin_index: int) -> float:
        """
        The set's p-value of an ended request; NaN where thresholds were set by hand.

        Of a learnt budget the rank of its highest peak; otherwise the smallest of the
        detectors' p-values over their shares, at most 1 (Bonferroni, weighted).
        """
        if self.evidence is None:
            return float("nan")
        if self.evidence.budget == "learnt":
            rows = self.joint_reference[self._rows_of(bin_index)]
            highest = peaks[self.flagging].max()
            return float(1 + (rows >= highest).sum()) / (len(rows) + 1)
        shares = np.array(self.evidence.shares)[self.flagging]
        p_values = self.p_values(peaks, bin_index)[self.flagging]
        return float(min(1.0, (p_values / shares).min()))

    def _rows_of(self, bin_index: int) -> slice:
        start, stop = self.reference_offsets[bin_index : bin_index + 2]
        return slice(int(start), int(stop))

    def _check_reference(self, n_bins: int, n_detectors: int) -> None:
        offsets = self.reference_offsets
        check_array("reference_offsets", offsets, (n_bins + 1,), np.int64)
        n_benign = len(self.reference)
        if (offsets[0], offsets[-1]) != (0, n_benign) or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"reference_offsets: expected rising ones from 0 to {n_benign}, "
                f"got {offsets.tolist()[:8]}"
            )
        for name, array, shape in (
            ("reference", self.reference, (n_benign, n_detectors)),
            ("joint_reference", self.joint_reference, (n_benign,)),
        ):
            # -inf is a request of which a detector counted nothing.
            known = np.where(np.isneginf(array), 0.0, array)
            check_array(name, known, shape, np.float64)


def fixed_thresholds(thresholds: Mapping[str, float]) -> Calibration:
    """
    Thresholds that were set by hand, of any length: nothing is promised.

    Raises:
        ValueError: There is none, or one is not finite.
    """
    if not thresholds:
        raise ValueError("thresholds: expected one or more, got none")
    level = np.array([list(thresholds.values())], dtype=np.float64)
    n_detectors = level.shape[1]
    return Calibration(
        detectors=tuple(thresholds),
        gates=(),
        longest=np.array([NO_LIMIT]),
        centre=np.zeros((1, n_detectors)),
        scale=np.ones((1, n_detectors)),
        running_level=level,
        final_level=level,
        reference=np.empty((0, n_detectors)),
        joint_reference=np.empty(0),
        reference_offsets=np.zeros(2, dtype=np.int64),
        evidence=None,
    )


def check_alpha(alpha: float) -> None:
    """Raise `ValueError` unless *alpha* can be promised."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number in (0, 1), got {alpha}")


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what}: expected one of {list(choices)}, got {value!r}")
