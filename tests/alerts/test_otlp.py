"""Flags as OpenTelemetry events, read by OpenTelemetry's own protobuf."""

import json
from collections.abc import Iterator

import pytest
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
)

from tests.alerts.receiver import Receiver
from tests.monitor.builders import Rows, loud
from tests.service.builders import (
    Place,
    RunningDaemon,
    assert_refused,
    eventually,
    innerwatch,
)
from tests.service.swapping import Engine


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def _flag(where: Place) -> None:
    with Engine(where.address) as engine:
        engine.hello()
        engine.step(Rows("chatcmpl-7", 0, [loud(0)]), finished=("chatcmpl-7",))


def test_a_flag_is_an_evaluation_result(where: Place, collector: Receiver) -> None:
    """
    A collector gets the event of the semantic conventions, with the detector's name,
    its score, and the response that it is of.
    """
    where.configure(otlp=f'url = "{collector.url}"')
    with RunningDaemon(where) as daemon:
        _flag(where)
        delivered = 'innerwatch_sink_delivered_total{sink="otlp"}'
        eventually(lambda: daemon.metric(delivered) == 1, "it is delivered")

    # Refuses unknown fields.
    request = Parse(collector.posts[0].body, ExportLogsServiceRequest())
    resource = request.resource_logs[0]
    record = resource.scope_logs[0].log_records[0]
    values = {one.key: one.value for one in record.attributes}
    assert "gen_ai.evaluation.result" == record.event_name
    assert "max" == values["gen_ai.evaluation.name"].string_value
    assert 10.0 == values["gen_ai.evaluation.score.value"].double_value
    assert "flagged" == values["gen_ai.evaluation.score.label"].string_value
    assert "chatcmpl-7" == values["gen_ai.response.id"].string_value
    assert not values["innerwatch.is_drill"].bool_value
    assert record.time_unix_nano > 1e18
    assert "service.name" == resource.resource.attributes[0].key


def test_what_a_collector_rejects_is_counted(where: Place, collector: Receiver) -> None:
    """
    A partial success is no delivery, and is not sent again (OTLP's specification).
    """
    said = {"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "no"}}
    collector.answer = json.dumps(said).encode()
    where.configure(otlp=f'url = "{collector.url}"')
    with RunningDaemon(where) as daemon:
        _flag(where)
        omitted = 'innerwatch_sink_omitted_total{reason="refused",sink="otlp"}'
        eventually(lambda: daemon.metric(omitted) == 1, "it is counted")
        assert 0 == daemon.metric('innerwatch_sink_delivered_total{sink="otlp"}')

    assert 1 == len(collector.posts)


def test_a_url_that_is_none_is_refused(where: Place) -> None:
    """
    The daemon does not start with what it could never send to.
    """
    where.configure(otlp='url = "127.0.0.1:4318"')

    refused = innerwatch("check", "--config", str(where.config))

    assert_refused(refused, "otlp.url", "expected http")
