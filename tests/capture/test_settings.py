import pytest

from service.capture.settings import (
    ABI,
    CaptureError,
    settings_from,
    settings_from_environment,
)

HOOK_POINT = "blocks.2.hook_resid_post"


def test_settings_survive_vllms_configuration() -> None:
    """What the plugin writes into `additional_config` reads back the same."""
    settings = settings_from({"hook_points": [HOOK_POINT], "k_max": 8})

    assert settings == settings_from(settings.to_additional_config())
    assert ABI == settings.to_additional_config()["abi"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hook_points": [HOOK_POINT], "kmax": 8}, "innerwatch.kmax: unknown key"),
        ({"hook_points": []}, "innerwatch.hook_points: expected at least one"),
        ({"hook_points": "blocks.1.hook_resid_post"}, "expected a list"),
        ({"hook_points": ["model.layers.3"]}, "got 'model.layers.3'"),
        ({"hook_points": [HOOK_POINT] * 2}, "expected each once"),
        (
            {"hook_points": ["blocks.1.hook_resid_post", "blocks.01.hook_resid_post"]},
            "expected each once",
        ),
        ({"hook_points": [HOOK_POINT], "address": 5}, "innerwatch.address: expected"),
        ({"hook_points": [HOOK_POINT], "address": "/run/x.sock"}, "got '/run/x.sock'"),
        ({"hook_points": [HOOK_POINT], "k_max": True}, "innerwatch.k_max: expected"),
        ({"hook_points": [HOOK_POINT], "mode": "raw"}, "innerwatch.mode: expected"),
        (
            {"hook_points": [HOOK_POINT], "tap_point": "end"},
            "innerwatch.tap_point: expected 'auto', 'block' or 'norm', got 'end'",
        ),
        ({"hook_points": [HOOK_POINT], "k_max": 0}, "innerwatch.k_max: expected"),
        ({"hook_points": [HOOK_POINT], "abi": ABI + 1}, "innerwatch.abi: this plugin"),
        ("blocks", "expected a table"),
    ],
)
def test_bad_settings_are_refused_by_key(entry: object, message: str) -> None:
    """A bad setting is one line that names the key and what was expected."""
    with pytest.raises(CaptureError) as error:
        settings_from(entry)

    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_environment_arms_by_hook_points_alone() -> None:
    """INNERWATCH_* variables become the same keys; other variables are ignored."""
    entry = settings_from_environment(
        {
            "INNERWATCH_HOOK_POINTS": f"{HOOK_POINT}, blocks.3.hook_resid_post",
            "INNERWATCH_K_MAX": "16",
            "HOME": "/",
        }
    )

    assert {
        "hook_points": [HOOK_POINT, "blocks.3.hook_resid_post"],
        "k_max": 16,
    } == entry
    assert {} == settings_from_environment({"PATH": "/bin"})


def test_a_number_in_the_environment_has_to_be_one() -> None:
    """A value that is no number is refused by the variable's name."""
    with pytest.raises(CaptureError, match="INNERWATCH_K_MAX: expected a number"):
        settings_from_environment({"INNERWATCH_K_MAX": "many"})


@pytest.mark.parametrize(
    ("transport", "address", "word"),
    [("shm", "unix:/s", "'auto', 'ring' or 'grpc'"), ("ring", "h:1", "unix socket")],
)
def test_a_transport_that_cannot_be_is_refused(
    transport: str, address: str, word: str
) -> None:
    """An unknown way, or shared memory with another host, stops the start."""
    with pytest.raises(CaptureError, match=word):
        settings_from(
            {
                "hook_points": ["blocks.1.hook_resid_post"],
                "transport": transport,
                "address": address,
            }
        )
