"""How badly an SAE that knows benign activations puts a token together again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from probes.aggregate import Aggregator
from probes.arrays import FLOAT32_MAX, Float32
from probes.detector import (
    Projection,
    activations_of,
    check_aggregator,
    check_columns,
    check_name,
)
from probes.errors import ActivationShapeError
from probes.sae_formats.record import SAE

_MAX_VALUES = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAEReconstruction:
    """
    Evidence is the share of an activation that the SAE does not reconstruct.

        \\|x - reconstruct(x)\\|^2 / \\|x\\|^2

    0 is perfect, 1 is as good as nothing at all. It needs the whole activation and
    all of the SAE, twice: 4 d_in d_sae operations a token.

    Attributes:
        name: Used as a label value.

        sae: The SAE, with its decoder.

        aggregator: Token evidence to a request statistic.
    """

    name: str
    sae: SAE
    aggregator: Aggregator
    projections: tuple[Projection, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        what = f"SAE reconstruction {self.name!r}"
        check_aggregator(what, self.aggregator, 1)
        if self.sae.W_dec is None or self.sae.is_transcoder:
            raise ValueError(
                f"{what}: sae: expected one with a decoder of what it reads, got none"
            )
        # Nothing linear is wanted of the activation but its length.
        projections = [
            Projection(
                hook_point=hook_point,
                weight=np.zeros((1, self.sae.d_model), dtype=np.float32),
                bias=np.zeros(1, dtype=np.float32),
                wants_norm=True,
            )
            for hook_point in self.sae.hook_points
        ]
        object.__setattr__(self, "projections", tuple(projections))

    def head(self, columns: Float32) -> NoReturn:
        """
        Refuse: see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: Always.
        """
        check_columns(self, columns)
        raise ActivationShapeError(
            f"detector {self.name!r} expects whole activations: nothing less says "
            f"how well they are reconstructed"
        )

    def head_on_activations(
        self, columns: Float32, activations: Mapping[str, Float32]
    ) -> Float32:
        """
        Evidence of each token; see `probes.detector.ActivationDetector`.

        Raises:
            ActivationShapeError: The arrays do not fit.
        """
        check_columns(self, columns)
        rows = activations_of(self.sae.hook_points, self.sae.d_model, activations)
        n_at_once = max(1, _MAX_VALUES // self.sae.d_sae)
        parts = [
            self._share(rows[start : start + n_at_once])
            for start in range(0, len(rows), n_at_once)
        ]
        return np.concatenate([np.empty((0, 1), dtype=np.float32), *parts])

    def _share(self, rows: Float32) -> Float32:
        wide = rows.astype(np.float64)
        missing = wide - self.sae.reconstruct(rows)
        energy = np.einsum("td,td->t", wide, wide)
        lost = np.einsum("td,td->t", missing, missing)
        # Nothing is missing of nothing.
        share = np.minimum(lost / np.where(energy > 0, energy, 1), FLOAT32_MAX)
        evidence: Float32 = share[:, None].astype(np.float32)
        return evidence
