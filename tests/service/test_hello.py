"""Which engines a bundle may watch."""

import pytest

from probes import Bundle, ProjectionBank, new_bundle
from service.daemon.hello import UnfitEngine, check_hello
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import calibration
from tests.probes.builders import LATER_HOOK_POINT, identity, topk_features
from tests.service.builders import hello
from tests.service.messages import identity_to_proto


@pytest.fixture
def reading_all() -> Bundle:
    """A bundle with a detector that needs whole activations."""
    detector = topk_features()
    return new_bundle(
        name="topk",
        version="1",
        identity=identity(),
        detectors=[detector],
        calibration=calibration(names=[detector.name]),
    )


def test_pushdown_cannot_serve_what_reads_whole_activations(
    reading_all: Bundle,
) -> None:
    """
    An engine that sends columns is refused by name; one that sends activations is not.
    """
    bank = ProjectionBank.compile(reading_all.detectors)
    request = hello()
    request.identity.CopyFrom(identity_to_proto(reading_all.identity))
    request.hook_points[:] = [LATER_HOOK_POINT]

    with pytest.raises(UnfitEngine, match=r"mode: \['topk-any'\].*'activations'"):
        check_hello(request, reading_all, bank)

    request.mode = pb.CAPTURE_MODE_ACTIVATIONS
    check_hello(request, reading_all, bank)
