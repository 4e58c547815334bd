"""What collection writes, and what it refuses to call a data set."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from monitor.records import NOT_WRITTEN, StepBatch
from probes.dataset import Dataset, load_dataset
from probes.errors import ArtifactError
from service.collecting import CollectionError, Collector, Target, collecting
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import D_MODEL, EARLY, LATE, Rows, batch, with_norms
from tests.service.builders import Client, hello
from tests.service.messages import batch_to_proto

ACTIVATIONS = pb.CAPTURE_MODE_ACTIVATIONS


def vllms(prompt_id: str, suffix: str = "0123abcd") -> str:
    """vLLM's request id for the chat request *prompt_id*."""
    return f"chatcmpl-{prompt_id}-{suffix}"


def rows(
    prompt_id: str, first: int, n: int, value: float = 0.5, n_prompt_tokens: int = 1
) -> Rows:
    return Rows(
        request_id=vllms(prompt_id),
        first_position=first,
        values=[[value, 0.0, 0.0, float(first + i)] for i in range(n)],
        n_prompt_tokens=n_prompt_tokens,
    )


def step(*parts: Rows, finished: tuple[str, ...] = (), number: int = 1) -> StepBatch:
    return batch(
        *parts,
        step=number,
        finished=tuple(vllms(prompt_id) for prompt_id in finished),
        holds_activations=True,
    )


def take(collector: Collector, *batches: StepBatch) -> None:
    """Hand over *batches*, complete, as the gRPC thread does."""
    for one in batches:
        collector.on_batch(one, len(one.token_ids))


@contextmanager
def collector_of(path: Path, *prompt_ids: str) -> Iterator[Collector]:
    """A collector of one data set, an engine having said Hello."""
    target = Target(path=path, labels={p: {"kind": p} for p in prompt_ids})
    with Collector([target]) as collector:
        collector.hello = hello(mode=ACTIVATIONS)
        yield collector


def positions_of(dataset: Dataset, index: int = 0) -> list[int]:
    found: list[int] = dataset.positions[dataset.rows_of(index)].tolist()
    return found


def test_a_batch_sent_again_after_a_reconnect_changes_nothing(tmp_path: Path) -> None:
    """
    The last batch of a finished request, sent again, does not replace the request.
    """
    last = step(rows("a", 4, 1), finished=("a",), number=2)
    target = Target(path=tmp_path / "set", labels={"a": {}, "b": {}})
    with (
        Collector([target]) as collector,
        collecting(tmp_path / "s", collector) as address,
    ):
        with Client(address) as client:
            client.hello(mode=ACTIVATIONS)
            client.ask(step(rows("a", 0, 4)))
            client.ask(last)
        with Client(address) as client:
            client.hello(mode=ACTIVATIONS)
            client.ask(last)
            client.ask(step(rows("b", 0, 2), finished=("b",), number=3))
            collector.wait(10)
        assert {tmp_path / "set": 7} == collector.finish()

    assert [0, 1, 2, 3, 4] == positions_of(load_dataset(tmp_path / "set"))


def test_rows_that_are_computed_again_are_written_once(tmp_path: Path) -> None:
    """
    A preempted request has each position once, as it was computed first.
    """
    with collector_of(tmp_path, "a") as collector:
        first = step(rows("a", 0, 3, value=1.0))
        again = step(rows("a", 0, 4, value=2.0), finished=("a",), number=2)
        take(collector, first, again)
        collector.wait(0)
        collector.finish()

    dataset = load_dataset(tmp_path, is_verified=True)
    assert [0, 1, 2, 3] == positions_of(dataset)
    assert [1.0, 1.0, 1.0, 2.0] == dataset.activations[EARLY][:, 0].tolist()


@pytest.mark.parametrize(
    "parts",
    [
        (rows("a", 0, 2), rows("a", 3, 2)),
        (rows("a", 1, 3),),
        (rows("a", 0, 3, n_prompt_tokens=5),),
        (rows("a", 0, 0),),
    ],
    ids=["hole", "late", "prompt-cut", "empty"],
)
def test_missing_positions_are_refused(tmp_path: Path, parts: tuple[Rows, ...]) -> None:
    """
    A request that lacks a position is no data, and is named.
    """
    with collector_of(tmp_path, "a") as collector:
        take(collector, *(step(part) for part in parts), step(finished=("a",)))

        with pytest.raises(CollectionError, match=r"request 'a': expected each pos"):
            collector.wait(0)
        with pytest.raises(CollectionError, match="request 'a'"):
            collector.finish()


def test_rows_that_were_expected_and_did_not_come_are_lost(tmp_path: Path) -> None:
    """
    What the scheduler asked for beyond what arrived is counted as lost.
    """
    complete = step(rows("a", 0, 2), finished=("a",))
    message = batch_to_proto(complete, n_rows_expected=5)
    target = Target(path=tmp_path / "set", labels={"a": {}})
    with (
        Collector([target]) as collector,
        collecting(tmp_path / "s", collector) as address,
        Client(address) as client,
    ):
        client.hello(mode=ACTIVATIONS)
        client.ask(message)

        with pytest.raises(CollectionError, match="3 rows were lost"):
            collector.wait(10)


def test_a_step_that_cannot_be_read_ends_the_wait(tmp_path: Path) -> None:
    """
    A plugin of another version is named at once; it is not asked again and again.
    """
    message = batch_to_proto(step(rows("a", 0, 2), finished=("a",)))
    message.token_ids = b"odd"
    target = Target(path=tmp_path / "set", labels={"a": {}})
    with (
        Collector([target]) as collector,
        collecting(tmp_path / "s", collector) as address,
        Client(address) as client,
    ):
        client.hello(mode=ACTIVATIONS)
        client.ask(message)

        with pytest.raises(CollectionError, match=r"token_ids.*same version"):
            collector.wait(10)


def test_unwritten_rows_and_gaps_are_lost(tmp_path: Path) -> None:
    """
    A row that the tap did not write and one that was dropped are both lost, at once.
    """
    with collector_of(tmp_path, "a") as collector:
        take(collector, with_norms(step(rows("a", 0, 2)), [1], float(NOT_WRITTEN)))
        collector.on_gap(pb.Gap(n_tokens=4))

        with pytest.raises(CollectionError, match="5 rows were lost"):
            collector.wait(60)


def test_a_request_is_on_disk_as_soon_as_it_has_ended(tmp_path: Path) -> None:
    """
    Rows do not wait in memory for the other requests.
    """
    with collector_of(tmp_path, "a", "b") as collector:
        take(collector, step(rows("a", 0, 4096), rows("b", 0, 1), finished=("a",)))

        assert 4095 * 16 <= (tmp_path / f"{LATE}.npy").stat().st_size


def test_two_data_sets_are_written_at_once(tmp_path: Path) -> None:
    """
    Each request goes where its labels are, and what nobody asked for nowhere.
    """
    targets = [
        Target(path=tmp_path / name, labels={p: {"kind": name} for p in prompt_ids})
        for name, prompt_ids in (("x", ("a", "c")), ("y", ("b",)), ("none", ()))
    ]
    with Collector(targets) as collector:
        collector.hello = hello(mode=ACTIVATIONS)
        parts = [rows(p, 0, 2) for p in ("a", "b", "c", "other")]
        take(collector, step(*parts, finished=("c", "b", "a", "other")))
        collector.wait(0)

        n_rows = collector.finish()

    assert {"x": 4, "y": 2, "none": 0} == {p.name: n for p, n in n_rows.items()}
    for name, expected in (("x", {"a", "c"}), ("y", {"b"}), ("none", set())):
        dataset = load_dataset(tmp_path / name, is_verified=True)
        assert expected == {r.request_id for r in dataset.requests}
        assert all({"kind": name} == r.labels for r in dataset.requests)


def test_a_prompt_that_did_not_arrive_is_named(tmp_path: Path) -> None:
    """
    A data set without one of its prompts is not finished, and can be begun anew.
    """
    with collector_of(tmp_path, "a", "b") as collector:
        take(collector, step(rows("a", 0, 2), rows("b", 0, 2), finished=("a",)))
        with pytest.raises(CollectionError, match=r"1 of 2 requests .* 'b'"):
            collector.wait(0)
    with pytest.raises(ArtifactError, match="finished"):
        load_dataset(tmp_path)

    with collector_of(tmp_path, "b") as collector:
        take(collector, step(rows("b", 0, 2), finished=("b",)))
        collector.finish()

    assert ["b"] == [r.request_id for r in load_dataset(tmp_path).requests]


def test_a_prompt_that_arrives_twice_is_refused(tmp_path: Path) -> None:
    """
    Two of vLLM's requests for one prompt are named, both of them.
    """
    other = replace(rows("a", 0, 2), request_id=vllms("a", "ffffffff"))
    with collector_of(tmp_path, "a") as collector:
        take(collector, step(rows("a", 0, 2), finished=("a",)))
        take(collector, replace(step(other), finished=(other.request_id,)))

        with pytest.raises(CollectionError, match=r"'a'.*0123abcd.*ffffffff"):
            collector.wait(0)


def test_a_request_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """
    Numbers that are not finite end the collection, and not the plugin's stream.
    """
    target = Target(path=tmp_path / "set", labels={"a": {}})
    bad = np.full((2, D_MODEL), np.inf, dtype=np.float32)
    complete = step(rows("a", 0, 2), finished=("a",))
    with (
        Collector([target]) as collector,
        collecting(tmp_path / "s", collector) as address,
        Client(address) as client,
    ):
        client.hello(mode=ACTIVATIONS)
        client.ask(replace(complete, activations={EARLY: bad, LATE: bad}))
        client.ask(step(rows("b", 0, 2), number=2))

        with pytest.raises(CollectionError, match=r"request 'a': .*not finite"):
            collector.wait(10)


def test_a_prompt_of_two_data_sets_is_refused(tmp_path: Path) -> None:
    """
    Where its rows should go must be clear before anything is received.
    """
    targets = [Target(path=tmp_path / name, labels={"a": {}}) for name in "xy"]

    with pytest.raises(ValueError, match="prompt 'a'"):
        Collector(targets)


def test_a_plugin_in_another_mode_is_refused(tmp_path: Path) -> None:
    """
    Columns are no activations: the plugin is told so.
    """
    collector = Collector([])
    with (
        collecting(tmp_path / "s", collector) as address,
        Client(address) as client,
        pytest.raises(grpc.RpcError, match="pushdown"),
    ):
        client.hello()

    assert collector.hello is None


def resumed(path: Path, *prompt_ids: str, max_tokens: int = 8) -> Target:
    """A data set that goes on."""
    return Target(
        path=path,
        labels={p: {"kind": p} for p in prompt_ids},
        settings={"max_tokens": max_tokens},
        goes_on=True,
    )


def test_an_interrupted_collection_goes_on(tmp_path: Path) -> None:
    """
    What has arrived need not be sent again, and the data set is whole in the end.
    """
    target = resumed(tmp_path, "a", "b")
    with Collector([target]) as collector:
        collector.hello = hello(mode=ACTIVATIONS)
        collector.begin(0)
        take(collector, step(rows("a", 0, 2), rows("b", 0, 1), finished=("a",)))

    assert {"a"} == target.written()
    with Collector([target]) as collector:
        collector.hello = hello(mode=ACTIVATIONS)
        collector.begin(0)
        take(collector, step(rows("b", 0, 3), finished=("b",)))
        collector.wait(0)
        assert {tmp_path: 5} == collector.finish()

    dataset = load_dataset(tmp_path, is_verified=True)
    assert ["a", "b"] == [request.request_id for request in dataset.requests]


def test_a_collection_that_lacks_nothing_is_finished(tmp_path: Path) -> None:
    """
    Interrupted after its last request, it only has to be closed.
    """
    target = resumed(tmp_path, "a")
    for _ in range(2):
        with Collector([target]) as collector:
            collector.hello = hello(mode=ACTIVATIONS)
            collector.begin(0)
            if not target.written():
                take(collector, step(rows("a", 0, 2), finished=("a",)))
                continue
            collector.wait(0)
            collector.finish()

    assert 1 == len(load_dataset(tmp_path).requests)


def test_a_collection_with_other_settings_does_not_go_on(tmp_path: Path) -> None:
    """
    It is said before a prompt is sent, and names the setting.
    """
    for max_tokens in (8, 9):
        target = resumed(tmp_path, "a", max_tokens=max_tokens)
        with Collector([target]) as collector:
            collector.hello = hello(mode=ACTIVATIONS)
            if max_tokens == 8:
                collector.begin(0)
                continue
            with pytest.raises(CollectionError, match=r"settings\.max_tokens: expect"):
                collector.begin(0)


def test_a_plugin_that_never_says_hello_is_told(tmp_path: Path) -> None:
    """
    Waiting for it ends.
    """
    with (
        Collector([resumed(tmp_path, "a")]) as collector,
        pytest.raises(CollectionError, match="expected a Hello"),
    ):
        collector.begin(0.01)
