"""Several detector sets' banks as one, while a model computes the columns of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from probes.arrays import Float32
from probes.bank import ProjectionBank, digest_of
from probes.errors import ArtifactError
from probes.hooks import layer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class UnionLayout:
    """
    Where each set's columns lie among those that one bank computes.

    Attributes:
        widths: By hook point, K_h: how many columns there are.

        places: By set, by hook point, the columns that are the set's.
    """

    widths: Mapping[str, int]
    places: Mapping[str, Mapping[str, slice]]

    def merged(self, other: "UnionLayout") -> "UnionLayout":
        """Add the sets of *other*, a layout of the same bytes."""
        return UnionLayout(widths=self.widths, places={**self.places, **other.places})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BankUnion:
    """
    What the plugin computes inside the model, for several detector sets at once.

    Of one set it is that set's bank, with the same digest. Sets whose banks are equal
    byte for byte, as a bundle and its recalibration are, share their columns.

    Attributes:
        hook_points: Where it reads, by rising layer.

        weights: By hook point, of shape (K_h, d_model), float32.

        biases: By hook point, of shape (K_h,), float32.

        layout: Which columns are whose.

        digest: SHA-256, hex, over hook points, shapes and bytes.
    """

    hook_points: tuple[str, ...]
    weights: dict[str, Float32]
    biases: dict[str, Float32]
    layout: UnionLayout
    digest: str

    @classmethod
    def compile(cls, banks: Mapping[str, ProjectionBank]) -> Self:
        """
        Stack *banks*, by set, in the order they are given.

        Raises:
            ArtifactError: There are none, or two read one hook point with different
                d_model.
        """
        if not banks:
            raise ArtifactError("bank: detector sets: expected one or more, got none")
        distinct = {bank.digest: bank for bank in banks.values()}
        found = {h for bank in distinct.values() for h in bank.hook_points}
        hook_points = tuple(sorted(found, key=layer_of))
        weights: dict[str, Float32] = {}
        biases: dict[str, Float32] = {}
        places: dict[str, dict[str, slice]] = {digest: {} for digest in distinct}
        for hook_point in hook_points:
            readers = [b for b in distinct.values() if hook_point in b.weights]
            _check_same_width(hook_point, readers)
            weights[hook_point] = np.concatenate(
                [b.weights[hook_point] for b in readers]
            )
            biases[hook_point] = np.concatenate([b.biases[hook_point] for b in readers])
            start = 0
            for bank in readers:
                end = start + bank.n_columns(hook_point)
                places[bank.digest][hook_point] = slice(start, end)
                start = end
        layout = UnionLayout(
            widths={h: len(weight) for h, weight in weights.items()},
            places={name: places[bank.digest] for name, bank in banks.items()},
        )
        return cls(
            hook_points=hook_points,
            weights=weights,
            biases=biases,
            layout=layout,
            digest=digest_of(weights, biases),
        )


def _check_same_width(hook_point: str, readers: list[ProjectionBank]) -> None:
    d_models = sorted({bank.weights[hook_point].shape[1] for bank in readers})
    if len(d_models) > 1:
        raise ArtifactError(
            f"bank: {hook_point}: expected one d_model in all sets, got {d_models}"
        )
