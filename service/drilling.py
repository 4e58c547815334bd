"""A drill from the outside: plants a test flag and times each step until an alert."""

import http.client
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

ALERT = "InnerwatchDrill"
"""Of deploy/prometheus/rules.yaml; its label drill is when a drill was planted."""

_METRIC = "innerwatch_drill_timestamp_seconds"
_CALL_SECONDS = 70.0  # The daemon gives up after 60.
_LOOK_SECONDS = 0.01
_ALERT_LOOK_SECONDS = 0.1  # Alertmanager is somebody else's.
_PAGE_SECONDS = 5.0
_SAME_SECONDS = 0.0005  # Planted at whole milliseconds.
_NOT_YET = (OSError, http.client.HTTPException, ValueError, KeyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillTimes:
    """
    Seconds from planted until each step, by clocks of this host.

    Attributes:
        drill_id: As the record has it.

        durable: Until it was in the record, synced.

        metrics: Until /metrics showed it; None if it did not in time.

        sinks: By sink, until it was delivered; None if it was not in time.

        alert: Until Alertmanager had it as firing; None if it had not in time, or was
            not asked.

        problems: By step, why it did not come.
    """

    drill_id: str
    durable: float
    metrics: float | None
    sinks: dict[str, float | None]
    alert: float | None
    problems: dict[str, str]


def run_drill(
    channel: grpc.Channel, *, alertmanager: str, timeout_seconds: float
) -> DrillTimes:
    """
    Plant a drill and wait for it everywhere, up to *timeout_seconds* from planting.

    Args:
        channel: To the daemon's unix socket.
        alertmanager: Its URL, ``http://host:port``; "" does not wait for an alert.
        timeout_seconds: After which a step is said not to have come.

    Raises:
        grpc.RpcError: The daemon does not answer, or refuses.
    """
    control = rpc.ControlStub(channel)
    began_at = time.time()
    planted: pb.StartDrillResponse = control.StartDrill(
        pb.StartDrillRequest(), timeout=_CALL_SECONDS
    )
    # Of one host, and yet rounded to milliseconds.
    began_at = min(began_at, float(planted.planted_at))
    until = time.monotonic() + timeout_seconds
    problems: dict[str, str] = {}

    def wait(step: str, look: Callable[[], bool], pause: float) -> float | None:
        problem = "not in time"
        while True:
            try:
                if look():
                    return time.time() - began_at
                problem = "not in time"
            except _NOT_YET as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() >= until:
                problems[step] = problem
                return None
            time.sleep(pause)

    metrics = wait(
        "/metrics",
        lambda: _is_shown(planted.metrics_url, planted.planted_at),
        _LOOK_SECONDS,
    )
    arrived = _wait_for_sinks(control, planted, until, problems)
    alert = None
    if alertmanager:
        alert = wait(
            "Alertmanager",
            lambda: _is_firing(alertmanager, planted.planted_at),
            _ALERT_LOOK_SECONDS,
        )
    return DrillTimes(
        drill_id=planted.drill_id,
        durable=planted.durable_at - began_at,
        metrics=metrics,
        sinks={
            name: arrived[name] - began_at if name in arrived else None
            for name in planted.sinks
        },
        alert=alert,
        problems=problems,
    )


def _wait_for_sinks(
    control: rpc.ControlStub,
    planted: pb.StartDrillResponse,
    until: float,
    problems: dict[str, str],
) -> dict[str, float]:
    """Return when each sink had delivered it; the daemon says so itself."""
    request = pb.GetDrillRequest(drill_id=planted.drill_id)
    while True:
        found = control.GetDrill(request, timeout=_CALL_SECONDS).deliveries
        is_whole = len(found) == len(planted.sinks)
        if is_whole or time.monotonic() >= until:
            break
        time.sleep(_LOOK_SECONDS)
    heard = {one.sink: one for one in found}
    for name in planted.sinks:
        problem = heard[name].problem if name in heard else "not in time"
        if problem:
            problems[name] = problem
    return {one.sink: one.at for one in found if not one.problem}


def _is_shown(url: str, planted_at: float) -> bool:
    for line in _fetch(url).decode().splitlines():
        if line.startswith(f"{_METRIC} "):
            return float(line.split()[1]) >= planted_at - _SAME_SECONDS
    return False


def _is_firing(alertmanager: str, planted_at: float) -> bool:
    query = urllib.parse.urlencode(
        {"filter": f'alertname="{ALERT}"', "active": "true", "inhibited": "true"}
    )
    alerts = json.loads(_fetch(f"{alertmanager.rstrip('/')}/api/v2/alerts?{query}"))
    return any(
        abs(float(one["labels"]["drill"]) - planted_at) < _SAME_SECONDS
        for one in alerts
    )


def _fetch(url: str) -> bytes:
    # Not through a proxy that the environment names: these are the operator's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_PAGE_SECONDS) as answer:
        page: bytes = answer.read()
    return page
