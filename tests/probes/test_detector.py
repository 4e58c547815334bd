"""Projections, names and hook points."""

import numpy as np
import pytest

from probes import (
    ActivationShapeError,
    LinearProbe,
    Max,
    Projection,
    canonical_hook_point,
    layer_of,
    score,
)
from probes.arrays import Float32
from tests.probes.builders import D_MODEL, HOOK_POINT, floats, linear


@pytest.mark.parametrize(
    ("weight", "bias", "named"),
    [
        (floats(3), floats(3), "weight"),
        (floats(3, 4), floats(2), "bias"),
        (floats(3, 4).astype(np.float64), floats(3), "float64"),
        (floats(3, 4) * np.float32(np.inf), floats(3), "finite"),
        (floats(0, 4), floats(0), "weight"),
    ],
)
def test_impossible_projection_is_refused(
    weight: Float32, bias: Float32, named: str
) -> None:
    """
    A projection of wrong shape, dtype or content cannot be built.
    """
    with pytest.raises(ValueError, match=named):
        Projection(hook_point=HOOK_POINT, weight=weight, bias=bias)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 65, "ä"])
def test_impossible_name_is_refused(name: str) -> None:
    """
    A name that is not short and plain is refused: it becomes a label value.
    """
    with pytest.raises(ValueError, match="name"):
        linear(name)


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_non_finite_bias_is_refused(bias: float) -> None:
    """
    A probe whose bias is not a number cannot be built.
    """
    with pytest.raises(ValueError, match="finite"):
        LinearProbe(
            name="p",
            hook_point=HOOK_POINT,
            weight=floats(4),
            bias=bias,
            aggregator=Max(),
        )


@pytest.mark.parametrize(
    "hook_point",
    [
        "blocks.x.hook_resid_post",
        "blocks.01.hook_resid_post",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_mlp_out",
        "../blocks.1.hook_resid_post",
        "blocks.1.hook_resid_post\n",
    ],
)
def test_other_hook_points_are_refused(hook_point: str) -> None:
    """
    Only the residual stream after a block is a hook point here.
    """
    with pytest.raises(ValueError, match="hook point"):
        layer_of(hook_point)


def test_pre_block_name_is_the_block_before() -> None:
    """
    What enters block 3 left block 2; what enters block 0 left no block.
    """
    expected = "blocks.2.hook_resid_post"

    assert expected == canonical_hook_point("blocks.3.hook_resid_pre")
    with pytest.raises(ValueError, match="hook point"):
        canonical_hook_point("blocks.0.hook_resid_pre")


def test_activations_of_another_width_are_refused() -> None:
    """
    The message says which hook point, what was expected and what came.
    """
    with pytest.raises(
        ActivationShapeError, match=rf"{HOOK_POINT}: .*{D_MODEL}.*\(2, 5\)"
    ):
        score(linear(), {HOOK_POINT: floats(2, 5)})
