"""What a sink says of one flag. No text and no token of the request."""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from service.daemon.drills import Drill
from service.request_ids import client_request

DRILL_DETECTOR = "innerwatch-drill"
"""What a drill is called where a flag has its detector's name."""


class NoticeKind(StrEnum):
    """Whether it is to be acted on."""

    FLAG = "flag"
    DRILL = "drill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """
    One flag that is in the record, or a drill.

    Attributes:
        notice_id: The same however often it is sent, and after a restart.

        flag_id: Its number in the record; 0 of a drill.

        flagged_at: When it was recorded, in seconds since the epoch.
    """

    notice_id: str
    kind: NoticeKind
    flag_id: int
    engine: str
    request_id: str
    detector: str
    score: float
    threshold: float
    position: int
    bundle_digest: str
    model: str
    adapter: str
    flagged_at: float

    @property
    def json(self) -> bytes:
        """A JSON object; numbers that JSON has no word for are null."""
        client = client_request(self.request_id)
        fields = {
            "schema": 1,
            "id": self.notice_id,
            "kind": self.kind.value,
            "is_drill": self.kind is NoticeKind.DRILL,
            "flag_id": self.flag_id or None,
            "engine": self.engine,
            "request_id": self.request_id,
            "client_request_id": client.request_id,
            "detector": self.detector,
            "score": self.score if isfinite(self.score) else None,
            "threshold": self.threshold if isfinite(self.threshold) else None,
            "position": self.position,
            "bundle_digest": self.bundle_digest,
            "model": self.model,
            "adapter": self.adapter,
            "flagged_at": self.flagged_at,
        }
        return json.dumps(fields, allow_nan=False).encode()


def notice_id_of(engine: str, request_id: str, detector: str) -> str:
    """
    Return the id of that flag.

    A request is flagged once by a detector, and the number in the record begins again
    in a new folder: so the three are the flag, and not its number.
    """
    key = json.dumps([engine, request_id, detector]).encode()
    return hashlib.sha256(key).hexdigest()[:32]


def notice_of_drill(drill: Drill) -> Notice:
    """Return what sinks say of *drill*."""
    return Notice(
        notice_id=drill.drill_id,
        kind=NoticeKind.DRILL,
        flag_id=0,
        engine="",
        request_id=drill.drill_id,
        detector=DRILL_DETECTOR,
        score=1.0,
        threshold=0.0,
        position=0,
        bundle_digest="",
        model="",
        adapter="",
        flagged_at=drill.planted_at,
    )
