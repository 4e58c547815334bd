"""The one interface every detector has: a projection, then a head."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import Float32, check_array, squared_norms
from probes.errors import ActivationShapeError
from probes.hooks import check_hook_point

# A label value, a tensor's prefix and a column of a table, so: short and plain.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """
    The part of a detector that is linear in the activation, at one hook point.

    Attributes:
        hook_point: Where it reads, ``blocks.L.hook_resid_post``.

        weight: Rows of shape (k, d_model), float32.

        bias: Added to the columns, of shape (k,), float32.

        wants_norm: Whether one more column follows: the squared length |x|^2.
    """

    hook_point: str
    weight: Float32
    bias: Float32
    wants_norm: bool = False

    def __post_init__(self) -> None:
        check_hook_point(self.hook_point)
        what = f"projection at {self.hook_point}"
        check_array(f"{what}: weight", self.weight, ("k", "d_model"))
        check_array(f"{what}: bias", self.bias, (len(self.weight),))
        if self.weight.size == 0:
            raise ValueError(f"{what}: weight: expected rows, got {self.weight.shape}")

    @property
    def d_model(self) -> int:
        return int(self.weight.shape[1])

    @property
    def n_columns(self) -> int:
        """How many columns the head is given, the squared norm included."""
        return len(self.weight) + self.wants_norm


@runtime_checkable
class Detector(Protocol):
    """
    Scores activations: ``head(W x + b, |x|^2)``, one row of evidence a token.

    Higher is more suspicious, for every detector. `head()` is a pure function:
    same columns, same evidence, whatever was scored before, and each row on its
    own. Finite columns give finite evidence; a NaN column gives NaN evidence and
    never a clean score. `tests/contract/test_detectors.py` holds every detector
    to this.
    """

    @property
    def name(self) -> str: ...

    @property
    def projections(self) -> tuple[Projection, ...]: ...

    @property
    def aggregator(self) -> Aggregator: ...

    def head(self, columns: Float32) -> Float32:
        """
        Evidence of each token.

        Args:
            columns: Of shape (n_tokens, n_columns): for each projection in order
                its k columns, then |x|^2 if it wants the norm.

        Returns:
            Evidence of shape (n_tokens, m), float32.

        Raises:
            ActivationShapeError: *columns* is not (n_tokens, n_columns) float32.
        """
        ...


@runtime_checkable
class ActivationDetector(Detector, Protocol):
    """
    A detector that columns alone do not decide: of some tokens it reads it all.

    Its projections are a pre-filter. It works only where whole activations are at
    hand, and says so where they are not: `head` raises.
    """

    def head_on_activations(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Float32:
        """
        Evidence of each token, as `Detector.head` gives it.

        Args:
            columns: As for `Detector.head`.

            activations: By hook point, of shape (n_tokens, d_model), float32.
        """
        ...


def evidence_of(
    detector: Detector, columns: Float32, activations: Mapping[str, Float32] | None
) -> Float32:
    """
    Evidence of each token, by whichever head *detector* has.

    Raises:
        ActivationShapeError: The arrays do not fit, or *detector* reads whole
            activations and there are none.
    """
    # In this order: asking for a protocol takes longer than most heads.
    if activations and isinstance(detector, ActivationDetector):
        return detector.head_on_activations(columns, activations)
    return detector.head(columns)


def check_aggregator(what: str, aggregator: Aggregator, n_columns: int) -> None:
    """Raise `ValueError` unless *aggregator* takes evidence of *n_columns*."""
    if aggregator.n_columns != n_columns:
        raise ValueError(
            f"{what}: aggregator: expected one for {n_columns} columns of evidence, "
            f"got {aggregator.name} for {aggregator.n_columns}"
        )


def check_name(name: str) -> None:
    """Raise `ValueError` unless *name* can be a detector's (or a bundle's)."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name: expected at most 64 of A-Z a-z 0-9 _ . - "
            f"beginning with a letter or digit, got {name!r}"
        )


def n_columns(projections: Sequence[Projection]) -> int:
    """How many columns a head with these *projections* is given."""
    return sum(projection.n_columns for projection in projections)


def check_columns(detector: Detector, columns: Float32) -> None:
    """Raise `ActivationShapeError` unless *detector*'s head can take *columns*."""
    expected = n_columns(detector.projections)
    if columns.ndim != 2 or columns.shape[1] != expected:
        raise ActivationShapeError(
            f"detector {detector.name!r} expects columns (n_tokens, {expected}), "
            f"got {columns.shape}"
        )
    if columns.dtype != np.float32:
        raise ActivationShapeError(
            f"detector {detector.name!r} expects float32 columns, got {columns.dtype}"
        )


def activations_at(
    hook_point: str, d_model: int, activations: Mapping[str, Float32]
) -> Float32:
    """
    The activations of shape (n_tokens, *d_model*) at *hook_point*.

    Raises:
        ActivationShapeError: There are none, or of another shape or dtype.
    """
    if hook_point not in activations:
        raise ActivationShapeError(
            f"expected activations at {hook_point}, got {sorted(activations)}"
        )
    found = activations[hook_point]
    if found.ndim != 2 or found.shape[1] != d_model or found.dtype != np.float32:
        raise ActivationShapeError(
            f"activations at {hook_point}: expected (n_tokens, {d_model}) float32, "
            f"got {found.shape} {found.dtype}"
        )
    return found


def activations_of(
    hook_points: Sequence[str], d_model: int, activations: Mapping[str, Float32]
) -> Float32:
    """
    Activations at several hook points side by side, (n_tokens, n * *d_model*).

    Raises:
        ActivationShapeError: Some are missing, of another shape or dtype, or of
            another number of tokens.
    """
    parts = [activations_at(h, d_model, activations) for h in hook_points]
    if len({len(part) for part in parts}) > 1:
        raise ActivationShapeError(
            f"expected as many tokens at each of {list(hook_points)}, "
            f"got {[len(part) for part in parts]}"
        )
    return np.concatenate(parts, axis=1)


def score(detector: Detector, activations: Mapping[str, Float32]) -> Float32:
    """
    Evidence of each token, straight from activations: the plain twin of the bank.

    Args:
        detector: Any detector.

        activations: By hook point, of shape (n_tokens, d_model), float32.

    Returns:
        Evidence of shape (n_tokens, m), float32.

    Raises:
        ActivationShapeError: A hook point is missing, or an array does not fit.
    """
    parts: list[Float32] = []
    for projection in detector.projections:
        rows = activations_at(projection.hook_point, projection.d_model, activations)
        parts.append(rows @ projection.weight.T + projection.bias)
        if projection.wants_norm:
            parts.append(squared_norms(rows)[:, None])
    if len({len(part) for part in parts}) > 1:
        raise ActivationShapeError(
            f"detector {detector.name!r} expects as many tokens at each hook point, "
            f"got {[len(part) for part in parts]}"
        )
    return evidence_of(detector, np.concatenate(parts, axis=1), activations)
