"""Several sets' banks as one: every set finds its own columns in it."""

import numpy as np
import pytest

from probes import ArtifactError, ProjectionBank
from probes.bank_union import BankUnion
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    detectors,
    floats,
    linear,
)


def bank(*names: str, hook_point: str = HOOK_POINT, seed: int = 0) -> ProjectionBank:
    """A bank of one probe a name, of other weights for each *seed*."""
    probes = [linear(name, hook_point) for name in names]
    made = ProjectionBank.compile(probes)
    rng = np.random.default_rng(seed)
    for weight in made.weights.values():
        weight += rng.standard_normal(weight.shape).astype(np.float32)
    return ProjectionBank(
        hook_points=made.hook_points,
        weights=made.weights,
        biases=made.biases,
        layout=made.layout,
        digest=f"{names} {hook_point} {seed}",
    )


def test_of_one_set_is_its_bank() -> None:
    """
    Engines that compute a set's bank already compute the union of that set alone.
    """
    alone = ProjectionBank.compile(detectors())

    union = BankUnion.compile({"a": alone})

    assert (alone.digest, alone.hook_points) == (union.digest, union.hook_points)
    for hook_point in alone.hook_points:
        place = union.layout.places["a"][hook_point]
        assert slice(0, alone.n_columns(hook_point)) == place


def test_every_set_finds_its_columns() -> None:
    """
    Columns of the union, cut to a set's places, are what its own bank computes.
    """
    banks = {
        "a": bank("x", "y", seed=1),
        "b": bank("z", hook_point=LATER_HOOK_POINT, seed=2),
        "c": ProjectionBank.compile(detectors()),
    }
    union = BankUnion.compile(banks)
    x = floats(7, D_MODEL)
    activations = dict.fromkeys(union.hook_points, x)
    together = {h: x @ union.weights[h].T + union.biases[h] for h in union.hook_points}

    for name, own in banks.items():
        columns, _ = own.project(activations)
        places = union.layout.places[name]
        assert set(own.hook_points) == set(places)
        for hook_point, place in places.items():
            found = together[hook_point][:, place]
            np.testing.assert_allclose(found, columns[hook_point], rtol=1e-5)


def test_equal_banks_share_their_columns() -> None:
    """
    A recalibrated bundle asks for no column more, and engines see no new bank.
    """
    one, other = bank("x"), bank("x")

    union = BankUnion.compile({"a": one, "recalibrated": other})

    assert {HOOK_POINT: 1} == union.layout.widths
    assert BankUnion.compile({"a": one}).digest == union.digest
    merged = BankUnion.compile({"a": one}).layout.merged(union.layout)
    assert {"a", "recalibrated"} == set(merged.places)


def test_sets_of_different_models_are_refused() -> None:
    """
    One hook point has one d_model.
    """
    narrow = bank("x")
    narrow.weights[HOOK_POINT] = narrow.weights[HOOK_POINT][:, 1:]

    with pytest.raises(ArtifactError, match="expected one d_model in all sets"):
        BankUnion.compile({"a": narrow, "b": bank("y", seed=3)})
    with pytest.raises(ArtifactError, match="one or more, got none"):
        BankUnion.compile({})
