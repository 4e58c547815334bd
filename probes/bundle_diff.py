"""What differs between two bundles, field by field."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from probes.bundle import Bundle
from probes.calibration import Calibration
from probes.calibration.record import NO_LIMIT
from probes.codec import Arrays, family_of, pack, pack_record
from probes.detector import Detector


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """
    One field in which two bundles A and B differ.

    Attributes:
        field: Its name, with those of what it is in: ``identity.dtype``,
            ``detectors.lie.weight``, ``thresholds.lie[64]`` (up to 64 tokens).

        a: Of A, as JSON has it; of an array its dtype and shape. None where A has no
            such thing.

        b: Of B.

        max_abs_diff: Of two arrays of one shape, the largest difference; None else,
            or where it is infinite.

        cosine: Of two directions, how much they are the same; None else.
    """

    field: str
    a: object
    b: object
    max_abs_diff: float | None = None
    cosine: float | None = None


def diff_bundles(a: Bundle, b: Bundle) -> list[Difference]:
    """
    Every field in which *a* and *b* differ; none where they have one digest.

    A detector that only one of them has is one field, ``detectors.NAME``.
    """
    found = [_plain("digest", a.digest, b.digest)]
    found += _fields(_facts(a), _facts(b))
    found += _detectors(a, b)
    found += _thresholds(a.calibration, b.calibration)
    found += _fields(_calibration(a.calibration), _calibration(b.calibration))
    found += _fields(_canaries(a), _canaries(b))
    return [one for one in found if one is not None]


def _facts(bundle: Bundle) -> dict[str, object]:
    identity = {f"identity.{k}": v for k, v in asdict(bundle.identity).items()}
    return {
        "name": bundle.name,
        "version": bundle.version,
        **identity,
        "hook_points": list(bundle.hook_points),
        "normalisation": bundle.normalisation,
        "fit_sha256": bundle.fit_sha256,
    }


def _detectors(a: Bundle, b: Bundle) -> Iterator[Difference | None]:
    ours, theirs = ({d.name: d for d in one.detectors} for one in (a, b))
    if ours.keys() == theirs.keys():
        yield _plain("detectors", list(ours), list(theirs))  # their order
    for name in {**ours, **theirs}:
        if name in ours and name in theirs:
            yield from _fields(_parts(ours[name]), _parts(theirs[name]))
        else:
            families = [
                family_of(one[name]) if name in one else None for one in (ours, theirs)
            ]
            yield _plain(f"detectors.{name}", *families)


def _parts(detector: Detector) -> dict[str, object]:
    """Fields and arrays of *detector*, by name."""
    table, arrays = pack(detector)
    where = f"detectors.{detector.name}"
    short = {key.removeprefix(f"{detector.name}/"): x for key, x in arrays.items()}
    return _joined(where, table, short)


def _calibration(calibration: Calibration) -> dict[str, object]:
    arrays: Arrays = {}
    table = pack_record(calibration, "", arrays)
    del table["detectors"]  # Those of the bundle.
    short = {key.removeprefix("/"): array for key, array in arrays.items()}
    return _joined("calibration", table, short)


def _canaries(bundle: Bundle) -> dict[str, object]:
    found: dict[str, object] = {"canaries": len(bundle.canaries)}
    for i, canary in enumerate(bundle.canaries):
        where = f"canaries[{i}]"
        found[f"{where}.token_ids"] = list(canary.token_ids)
        for hook_point, columns in sorted(canary.columns.items()):
            norms = canary.squared_norms[hook_point]
            found[f"{where}.{hook_point}.columns"] = columns
            found[f"{where}.{hook_point}.squared_norms"] = norms
    return found


def _thresholds(a: Calibration, b: Calibration) -> Iterator[Difference | None]:
    """Boundaries at a request's end, wherever either set has a boundary."""
    lengths = np.union1d(a.longest, b.longest)
    for name in a.detectors:
        if name in b.detectors:
            sides = [_thresholds_of(one, name, lengths) for one in (a, b)]
            for length, ours, theirs in zip(lengths.tolist(), *sides, strict=True):
                label = "any" if length == NO_LIMIT else length
                yield _plain(f"thresholds.{name}[{label}]", ours, theirs)


def _thresholds_of(
    calibration: Calibration, name: str, lengths: NDArray[np.int64]
) -> list[float | None]:
    """At each of *lengths*; None beyond the longest."""
    column = calibration.final_thresholds()[:, calibration.detectors.index(name)]
    known = [*column.tolist(), None]
    return [known[k] for k in calibration.bins_of(lengths).tolist()]


def _joined(
    where: str, table: Mapping[str, object], arrays: Mapping[str, NDArray[np.generic]]
) -> dict[str, object]:
    """Nested tables and arrays as one, by names with dots."""
    found: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _joined(f"{where}.{key}", value, {})
        else:
            found[f"{where}.{key}"] = value
    named = {f"{where}.{key.replace('/', '.')}": x for key, x in arrays.items()}
    return found | named


def _fields(
    a: Mapping[str, object], b: Mapping[str, object]
) -> Iterator[Difference | None]:
    for field in {**a, **b}:
        ours, theirs = a.get(field), b.get(field)
        if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
            yield _arrays(field, ours, theirs)
        else:
            yield _plain(field, _shown(ours), _shown(theirs))


def _plain(field: str, a: object, b: object) -> Difference | None:
    # As they are stored: 0.0 and -0.0 are different bytes, and so is 1 from 1.0.
    if json.dumps(a) == json.dumps(b):
        return None
    return Difference(field=field, a=a, b=b)


def _arrays(
    field: str, a: NDArray[np.generic], b: NDArray[np.generic]
) -> Difference | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return Difference(field=field, a=_shown(a), b=_shown(b))
    if a.tobytes() == b.tobytes():
        return None
    ours, theirs = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    most = float(apart.max())
    is_directed = field.startswith("detectors.")
    return Difference(
        field=field,
        a=_shown(a),
        b=_shown(b),
        max_abs_diff=most if np.isfinite(most) else None,
        cosine=_cosine(ours.squeeze(), theirs.squeeze()) if is_directed else None,
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    if a.ndim != 1 or len(a) < 2 or not np.isfinite(lengths) or lengths == 0:
        return None
    return float(a @ b / lengths)


def _shown(value: object) -> object:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return value
