"""What the demo counts and prints, and the ids it counts by."""

import pytest

from service.demo.result import DemoResult, count_flags, table
from service.request_ids import client_id


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [
        ("chatcmpl-fit-00012-92983f4d", "fit-00012"),
        ("cmpl-batch7-0-92983f4d", "batch7"),
        ("r3-b2074e7d", "r3"),
        ("something else", "something else"),
    ],
)
def test_the_clients_id_is_found_in_vllms(request_id: str, expected: str) -> None:
    """Endpoint, prompt index and random suffix come off; anything else stays."""
    assert expected == client_id(request_id)


def make_result(**changes: object) -> DemoResult:
    """Return a result without failures, unless changed."""
    fields: dict[str, object] = {
        "planted": {"benign": 2, "backdoor": 1},
        "flagged": {"probe": {"backdoor": 1}},
        "n_tokens_expected": 30,
        "n_tokens_scored": 30,
        "n_tokens_lost": {"prefix_cached": 0},
        "n_requests": {"scanned": 3},
    }
    return DemoResult(**(fields | changes))  # type: ignore[arg-type]


def test_flags_are_counted_by_behaviour() -> None:
    """Each flag counts for its request's behaviour; a silent detector stays listed."""
    flags = [("chatcmpl-a-00000000", "probe"), ("chatcmpl-b-00000000", "probe")]

    counted = count_flags(flags, {"a": "backdoor", "b": "benign"}, ["probe", "other"])

    assert {"probe": {"backdoor": 1, "benign": 1}, "other": {}} == counted


def test_a_good_result_has_no_failures() -> None:
    """Everything scanned and seen is no failure, and the table says so."""
    assert [] == make_result().failures()
    assert "30 of 30 tokens scored (100.00%), lost: none" in table(make_result())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tokens_scored": 29}, "coverage is below 100 %"),
        ({"n_requests": {"scanned": 2, "partial": 1}}, "coverage is below 100 %"),
        ({"flagged": {"probe": {"benign": 1}}}, "'backdoor' was seen by no detector"),
    ],
)
def test_what_must_not_happen_is_a_failure(
    changes: dict[str, object], message: str
) -> None:
    """Lost coverage and an unseen behaviour end the demo with a reason."""
    (failure,) = make_result(**changes).failures()

    assert message in failure
