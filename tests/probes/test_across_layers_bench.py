# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""The short form of the benchmark of detectors across layers."""

from tests.probes.builders import require_sklearn

require_sklearn()

from tests.bench.across_layers import aurocs, costs


def test_the_difference_finds_what_no_layer_does() -> None:
    """
    Whole layer deltas separate detours better than any detector of one layer.
    """
    found = aurocs(n_repetitions=1)

    best = max(value for name, value in found.items() if not name.startswith("layer"))
    assert found["layer delta, whole"] > max(best, found["layer delta, rank 16"])


def test_every_form_has_its_cost() -> None:
    """
    What is evaluated, from a probe to a cascade, takes time that is measured.
    """
    assert all(cost > 0 for cost in costs(d_model=32, n_tokens=50).values())
