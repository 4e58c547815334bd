"""The daemon's bank gets into the model's buffers bit by bit, or not at all."""

import numpy as np
import pytest
import torch

from service.capture.bank import HostBank, host_bank
from service.capture.settings import CaptureError
from service.capture.tap import TapBuffers
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import bank_to_proto
from tests.monitor.builders import D_MODEL, EARLY, LATE, bank

TAPPED = (LATE, "blocks.9.hook_resid_post", EARLY)
K_MAX = 8


def lay_out(message: pb.Bank) -> HostBank:
    """Lay *message* out for taps that stand in another order than its slices."""
    return host_bank(
        message.digest,
        list(message.slices),
        hook_points=TAPPED,
        k_max=K_MAX,
        d_model=D_MODEL,
    )


def test_every_weight_arrives_at_its_tap() -> None:
    """
    Each slice is where its tap reads; every other row and column is zero.
    """
    buffers = TapBuffers.allocate(
        n_sites=3,
        max_rows=4,
        d_model=D_MODEL,
        k_max=K_MAX,
        device=torch.device("cpu"),
    )
    assert buffers.weight is not None
    assert buffers.bias is not None
    buffers.weight.fill_(7.0)
    buffers.bias.fill_(7.0)

    laid_out = lay_out(bank_to_proto(bank()))
    laid_out.write_to(buffers)

    weight = np.zeros((3, K_MAX, D_MODEL), dtype=np.float32)
    bias = np.zeros((3, K_MAX), dtype=np.float32)
    for site, hook_point in ((0, LATE), (2, EARLY)):
        n_columns = len(bank().biases[hook_point])
        weight[site, :n_columns] = bank().weights[hook_point]
        bias[site, :n_columns] = bank().biases[hook_point]
    np.testing.assert_array_equal(weight, buffers.weight.numpy())
    np.testing.assert_array_equal(bias, buffers.bias.numpy())
    assert buffers.n_columns is not None
    widths = [len(bank().biases.get(name, ())) for name in TAPPED]
    assert widths == buffers.n_columns.tolist()
    assert bank().digest == laid_out.digest
    assert max(map(len, bank().biases.values())) == laid_out.width


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hook_point", "blocks.5.hook_resid_post", "reads blocks.5"),
        ("n_columns", K_MAX + 1, f"at most {K_MAX} columns, got"),
        ("d_model", D_MODEL + 1, f"expected d_model {D_MODEL}"),
        ("weight", b"\0" * 7, "bytes, got 7"),
        ("bias", b"", "bytes, got"),
    ],
)
def test_a_bank_that_does_not_fit_is_refused(
    field: str, value: object, message: str
) -> None:
    """
    What a daemon of another mind sends is named, and nothing of it is used.
    """
    sent = bank_to_proto(bank())
    setattr(sent.slices[0], field, value)

    with pytest.raises(CaptureError, match=message):
        lay_out(sent)
