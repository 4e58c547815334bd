"""Requests: which tokens, which detectors, what was flagged, what was lost."""

from monitor.core import BatchError, Finished, Monitor
from monitor.coverage import Coverage, Totals
from monitor.records import (
    NOT_WRITTEN,
    Flag,
    Gap,
    LossReason,
    LostRange,
    RequestSummary,
    StepBatch,
    Verdict,
)

__all__ = [
    "NOT_WRITTEN",
    "BatchError",
    "Coverage",
    "Finished",
    "Flag",
    "Gap",
    "LossReason",
    "LostRange",
    "Monitor",
    "RequestSummary",
    "StepBatch",
    "Totals",
    "Verdict",
]
