"""Sends notices to an OpenTelemetry collector, as events gen_ai.evaluation.result."""

# OTLP 1.x over HTTP in its JSON form, which needs no library: protobuf's JSON mapping,
# with 64-bit integers as strings. The event and its attributes are those of
# OpenTelemetry's semantic conventions for generative AI, "Evaluation result".

import json
from collections.abc import Mapping
from math import isfinite

from service.daemon.sinks.follower import RefusedError
from service.daemon.sinks.http_post import HTTPPost
from service.daemon.sinks.notice import Notice, NoticeKind
from service.request_ids import client_request

EVENT = "gen_ai.evaluation.result"
_WARN = 13  # SeverityNumber of the logs' data model.
_INFO = 9


class OTLP:
    """A `Receiver` that POSTs log records to a collector's ``/v1/logs``."""

    def __init__(self, url: str, timeout_seconds: float, *, version: str) -> None:
        """As `HTTPPost`; *version* is this program's."""
        self._http = HTTPPost(url, timeout_seconds)
        self._version = version

    def deliver(self, notice: Notice) -> None:
        """POST *notice*; see `Receiver`."""
        body = json.dumps(request_of(notice, self._version), allow_nan=False).encode()
        answer = self._http.post(body, {"Content-Type": "application/json"})
        problem = _rejected(answer)
        if problem:
            raise RefusedError(problem)

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._http.close()


def request_of(notice: Notice, version: str) -> dict[str, object]:
    """Return an ExportLogsServiceRequest of one event, as JSON has it."""
    is_drill = notice.kind is NoticeKind.DRILL
    client = client_request(notice.request_id)
    attributes: dict[str, str | float | bool] = {
        "gen_ai.evaluation.name": notice.detector,
        "gen_ai.evaluation.score.label": "drill" if is_drill else "flagged",
        "gen_ai.response.id": client.request_id,
        "innerwatch.flag.id": notice.notice_id,
        "innerwatch.request.id": notice.request_id,
        "innerwatch.bundle.digest": notice.bundle_digest,
        "innerwatch.is_drill": is_drill,
    }
    if notice.model:
        attributes["gen_ai.request.model"] = notice.model
    if isfinite(notice.score):
        attributes["gen_ai.evaluation.score.value"] = notice.score
    if isfinite(notice.threshold):
        attributes["innerwatch.threshold"] = notice.threshold
    record = {
        "timeUnixNano": str(round(notice.flagged_at * 1e9)),
        "severityNumber": _INFO if is_drill else _WARN,
        "eventName": EVENT,
        "body": {"stringValue": f"{notice.detector} flagged {notice.request_id}"},
        "attributes": _attributes(attributes),
    }
    scope = {"name": "innerwatch", "version": version}
    resource = {"attributes": _attributes({"service.name": "innerwatch"})}
    logs = [{"scope": scope, "logRecords": [record]}]
    return {"resourceLogs": [{"resource": resource, "scopeLogs": logs}]}


def _attributes(values: Mapping[str, str | float | bool]) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | float | bool) -> dict[str, object]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"stringValue": value} if isinstance(value, str) else {"doubleValue": value}


def _rejected(answer: bytes) -> str:
    """Return why a collector that answered 200 left it out, or ""."""
    try:
        said = json.loads(answer)["partialSuccess"]
        n_rejected = int(said.get("rejectedLogRecords", 0))
        text = str(said.get("errorMessage", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    except (ArithmeticError, RecursionError):  # Infinity; a million brackets.
        return ""
    return f"rejected by the collector: {text[:200]!r}" if n_rejected else ""
