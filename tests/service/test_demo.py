"""What the demo counts and prints, what it erases, and how its daemon fails."""

import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from monitor.records import Flag
from service.config import MetricsConfig, load_config
from service.daemon.audit.records import Entries
from service.daemon.audit.store import AuditStore
from service.demo.daemon import (
    SOCKET_NAME,
    Daemon,
    DemoError,
    listen_address,
    monitor_toml,
)
from service.demo.result import DemoResult, count_flags, table
from service.demo.run import Demo
from service.request_ids import client_id
from service.serving import Prompt, free_port
from tests.service.builders import ROOT, Place, bundle, innerwatch, place


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [
        ("chatcmpl-fit-00012-92983f4d", "fit-00012"),
        ("cmpl-batch7-0-92983f4d", "batch7"),
        ("r3-b2074e7d", "r3"),
        ("2_chatcmpl-fit-7-92983f4d", "fit-7"),
        ("2_cmpl-fit-7-1-92983f4d", "fit-7"),
        ("2_fit-92983f4d", "2_fit"),
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
        "n_tokens_scored": 20,
        "n_tokens_shadowed": 10,
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
    assert "20 of 30 tokens scored, 10 shadowed (100.00%), lost: none" in table(
        make_result()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tokens_scored": 19}, "coverage is below 100 %"),
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


def demo(work: Path) -> Demo:
    """A demo in *work*, of an organism that is not there."""
    return Demo(
        folder=Path("/nowhere"),
        work=work,
        n_requests=1,
        concurrency=1,
        is_kept=False,
        is_json=True,
    )


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    """
    A folder that holds what no demo made is refused, and nothing in it is touched.
    """
    (tmp_path / "thesis.tex").write_text("years")

    with pytest.raises(DemoError, match="nothing was removed"):
        demo(tmp_path).clear_work()

    assert ["thesis.tex"] == [path.name for path in tmp_path.iterdir()]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    """
    A file is no folder to work in.
    """
    (tmp_path / "x").write_text("years")

    with pytest.raises(DemoError, match="found a file"):
        demo(tmp_path / "x").clear_work()

    assert "years" == (tmp_path / "x").read_text()


def test_the_folder_of_an_earlier_demo_is_made_anew(tmp_path: Path) -> None:
    """
    Absent or empty, the folder is taken; what a demo left in it goes.
    """
    work = tmp_path / "a" / "demo"
    demo(work).clear_work()
    (work / "audit").mkdir()

    demo(work).clear_work()

    assert not (work / "audit").exists()
    demo(work).clear_work()


def test_the_record_of_a_running_daemon_stays(tmp_path: Path) -> None:
    """
    A demo that was left running keeps its folder.
    """
    demo(tmp_path).clear_work()
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / SOCKET_NAME))
        daemon.listen()

        with pytest.raises(DemoError, match="still runs here"):
            demo(tmp_path).clear_work()

    assert (tmp_path / SOCKET_NAME).exists()
    demo(tmp_path).clear_work()


def test_a_folder_with_a_long_name_is_refused_first(tmp_path: Path) -> None:
    """
    Where no socket could be, nothing is started and nothing made.
    """
    work = tmp_path / ("x" * 100)

    with pytest.raises(DemoError, match="under 108 bytes"):
        demo(work).run()

    assert not work.exists()


@pytest.mark.parametrize("option", ["--requests", "--concurrency"])
def test_no_requests_are_refused(option: str) -> None:
    """
    None at all, or none at a time, is said before anything starts.
    """
    result = innerwatch("demo", option, "0")

    assert 2 == result.returncode
    assert f"innerwatch: {option}: expected 1 or more, got 0\n" == result.stderr


def test_it_is_where_the_examples_look_unless_others_are() -> None:
    """
    A port that is free is taken as it is, and one that is not is left to its owner.
    """
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert port != free_port(port)
    assert port == free_port(port)

    example = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    assert f'"127.0.0.1:{MetricsConfig().port}"' in example.read_text()


def configure(where: Place, digest: str) -> str:
    """Write the demo's configuration; return the address that the daemon gets."""
    listen = listen_address(where.folder)
    where.config.write_text(monitor_toml(listen, 0, digest))
    return listen


def test_the_configuration_pins_the_bundle() -> None:
    """
    The daemon takes the bundle that the demo has just fitted, and no other.
    """
    with place() as where:
        configure(where, "d" * 64)

        assert "d" * 64 == load_config(where.config).bundle_digest


def test_a_daemon_that_does_not_start_is_one_line() -> None:
    """
    The error has the last line of the daemon's log, and comes at once.
    """
    with place() as where:
        listen = configure(where, "d" * 64)
        began = time.monotonic()
        with (
            pytest.raises(
                DemoError, match=r"status 2: .*bundle\.json: sha256"
            ) as caught,
            Daemon(where.folder, listen, is_left_running=False) as daemon,
        ):
            daemon.wait_for(lambda _: True, "no daemon")

    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30


def test_every_flag_is_counted() -> None:
    """
    More flags than the daemon lists in one answer are all in the result.
    """
    n = 10_001
    flags = [
        Flag(
            engine="e",
            request_id=f"chatcmpl-p{i}-0123abcd",
            detector="max",
            score=3.0,
            threshold=2.0,
            position=0,
            bank_digest="",
            scores=np.empty(0, dtype=np.float32),
            token_ids=np.empty(0, dtype=np.int32),
        )
        for i in range(n)
    ]
    prompts = [
        Prompt(prompt_id=f"p{i}", messages=[], labels={"behaviour": "x"})
        for i in range(n)
    ]
    with place() as where:
        listen = configure(where, bundle().digest)
        store = AuditStore.open(where.folder / "audit", model="", bundle_digest="")
        store.write(Entries(flags=flags), 1.0)
        store.close()
        with Daemon(where.folder, listen, is_left_running=False) as daemon:
            result = daemon.result(prompts)

    assert {"ema": {}, "max": {"x": n}, "mean": {}} == result.flagged
    assert Counter(x=n) == result.planted
