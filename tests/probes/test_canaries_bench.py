"""The short form of the benchmark of canaries."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.bench.canaries import measure


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_are_tolerated_and_another_layer_is_not(dtype: str) -> None:
    """
    A real model passes with another attention kernel, and not at another layer.
    """
    found = measure(4, dtype)

    assert found["kernels"] <= found["tolerance"] < found["another layer"]
