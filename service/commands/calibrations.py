"""Shows a calibration: what is promised, and what it rests on."""

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.calibration import Calibration


def calibration_facts(calibration: "Calibration") -> dict[str, object]:
    """What JSON output says of *calibration*."""
    thresholds = calibration.final_thresholds().T.tolist()
    evidence = calibration.evidence
    return {
        "longest": calibration.longest.tolist(),
        "thresholds": dict(zip(calibration.detectors, thresholds, strict=True)),
        "gates": list(calibration.gates),
        "evidence": asdict(evidence) if evidence is not None else None,
    }


def print_calibration(calibration: "Calibration") -> None:
    """Print boundaries by length, and the promise."""
    lengths = [f"<= {length}" for length in calibration.longest.tolist()]
    is_by_length = len(lengths) > 1 or calibration.evidence is not None
    roles = dict.fromkeys(calibration.gates, " (gate)")
    titles = [name + roles.get(name, "") for name in calibration.detectors]
    width = max(20, *(len(title) + 1 for title in titles))
    if is_by_length:
        print(f"  {'tokens':<{width}}" + "".join(f"{length:>12}" for length in lengths))
    columns = calibration.final_thresholds().T.tolist()
    for title, column in zip(titles, columns, strict=True):
        cells = "".join(f"{threshold:>12.4g}" for threshold in column)
        print(f"  {title:<{width}}{cells}")
    evidence = calibration.evidence
    if evidence is None:
        print("  thresholds set by hand: nothing is promised")
        return
    for title, counts in (
        ("benign requests", evidence.n_benign),
        ("checked", evidence.n_checked),
        ("of these flagged", evidence.n_flagged),
    ):
        print(f"  {title:<{width}}" + "".join(f"{n:>12}" for n in counts))
    how = "on average over calibration sets"
    if evidence.guarantee == "pac":
        how = f"with confidence {evidence.confidence:g}"
    print(f"  at most {evidence.alpha:.2%} of benign requests are flagged, {how}")
    if not sum(evidence.n_checked):
        return
    print(
        f"  of those checked {evidence.realised:.2%} were "
        f"(95 %: {evidence.realised_low:.2%} to {evidence.realised_high:.2%})"
    )
