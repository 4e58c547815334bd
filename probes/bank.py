"""All projections of a detector set, stacked: one matrix a hook point."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from probes.arrays import Float32, squared_norms
from probes.detector import Detector, Projection, activations_at
from probes.errors import ActivationShapeError, ArtifactError
from probes.hooks import layer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """Where one projection of a detector lies in the bank."""

    hook_point: str
    columns: slice
    wants_norm: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProjectionBank:
    """
    What the plugin computes inside the model, for all detectors at once.

    Attributes:
        hook_points: Where it reads, by rising layer.

        weights: By hook point, of shape (K_h, d_model), float32.

        biases: By hook point, of shape (K_h,), float32.

        layout: By detector name, where its columns lie. Read with `columns_of`.

        digest: SHA-256, hex, over hook points, shapes and bytes.
    """

    hook_points: tuple[str, ...]
    weights: dict[str, Float32]
    biases: dict[str, Float32]
    layout: dict[str, tuple[_Slice, ...]]
    digest: str

    @classmethod
    def compile(cls, detectors: Sequence[Detector]) -> Self:
        """
        Stack the projections of *detectors*, in the order they are given.

        Raises:
            ArtifactError: There are none, two share a name, or two read one hook
                point with different d_model.
        """
        if not detectors:
            raise ArtifactError("bank: detectors: expected at least one, got none")
        stacks: dict[str, list[Projection]] = {}
        layout: dict[str, tuple[_Slice, ...]] = {}
        for detector in detectors:
            if detector.name in layout:
                raise ArtifactError(
                    f"bank: detectors: expected different names, "
                    f"got {detector.name!r} twice"
                )
            slices = [_place(stacks, p, detector.name) for p in detector.projections]
            layout[detector.name] = tuple(slices)
        hook_points = tuple(sorted(stacks, key=layer_of))
        weights = {
            h: np.concatenate([p.weight for p in stacks[h]]) for h in hook_points
        }
        biases = {h: np.concatenate([p.bias for p in stacks[h]]) for h in hook_points}
        return cls(
            hook_points=hook_points,
            weights=weights,
            biases=biases,
            layout=layout,
            digest=digest_of(weights, biases),
        )

    def n_columns(self, hook_point: str) -> int:
        """K_h, how many columns the bank has at *hook_point*; norms not counted."""
        return len(self.weights[hook_point])

    def project(
        self, activations: Mapping[str, Float32]
    ) -> tuple[dict[str, Float32], dict[str, Float32]]:
        """
        Columns and squared norms of *activations*: the plain twin of pushdown.

        Args:
            activations: By hook point, of shape (n_tokens, d_model), float32.

        Returns:
            By hook point, x W^T + b of shape (n_tokens, K_h), and |x|^2 of shape
            (n_tokens,), both float32.

        Raises:
            ActivationShapeError: A hook point is missing, or an array does not fit.
        """
        rows = {
            h: activations_at(h, self.weights[h].shape[1], activations)
            for h in self.hook_points
        }
        columns = {h: x @ self.weights[h].T + self.biases[h] for h, x in rows.items()}
        return columns, {h: squared_norms(x) for h, x in rows.items()}

    def columns_of(
        self,
        detector_name: str,
        columns: Mapping[str, Float32],
        squared_norms: Mapping[str, Float32],
    ) -> Float32:
        """
        The columns that the head of *detector_name* takes.

        Args:
            detector_name: A detector the bank was compiled from.

            columns: By hook point, of shape (n_tokens, K_h), float32.

            squared_norms: By hook point, of shape (n_tokens,), float32.

        Returns:
            Of shape (n_tokens, n_columns of the detector), float32.

        Raises:
            KeyError: The bank has no such detector.
            ActivationShapeError: A hook point is missing, or an array does not fit.
        """
        parts: list[Float32] = []
        for place in self.layout[detector_name]:
            width = self.n_columns(place.hook_point)
            found = activations_at(place.hook_point, width, columns)
            parts.append(found[:, place.columns])
            if place.wants_norm:
                norms = squared_norms.get(place.hook_point, np.empty(0, np.float32))
                parts.append(norms[:, None])
        if len({len(part) for part in parts}) > 1:
            raise ActivationShapeError(
                f"detector {detector_name!r} expects as many rows in each array, "
                f"got {[len(part) for part in parts]}"
            )
        return np.concatenate(parts, axis=1)


def _place(
    stacks: dict[str, list[Projection]], projection: Projection, detector_name: str
) -> _Slice:
    stack = stacks.setdefault(projection.hook_point, [])
    if stack and stack[0].d_model != projection.d_model:
        raise ArtifactError(
            f"bank: detector {detector_name!r} at {projection.hook_point}: "
            f"expected d_model {stack[0].d_model}, got {projection.d_model}"
        )
    start = sum(len(other.weight) for other in stack)
    stack.append(projection)
    return _Slice(
        hook_point=projection.hook_point,
        columns=slice(start, start + len(projection.weight)),
        wants_norm=projection.wants_norm,
    )


def digest_of(weights: Mapping[str, Float32], biases: Mapping[str, Float32]) -> str:
    """SHA-256, hex, of a bank: by hook point, weights (K_h, d_model), biases (K_h,)."""
    digest = hashlib.sha256()
    for hook_point, weight in weights.items():
        digest.update(f"{hook_point} {weight.shape}\n".encode())
        digest.update(np.ascontiguousarray(weight, dtype="<f4").tobytes())
        digest.update(np.ascontiguousarray(biases[hook_point], dtype="<f4").tobytes())
    return digest.hexdigest()
