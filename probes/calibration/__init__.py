"""What a request's statistics are held against, and what that promises."""

from probes.calibration.discovery import ELond, e_value
from probes.calibration.drift import DriftTest
from probes.calibration.peaks import Peaks
from probes.calibration.record import (
    Calibration,
    CalibrationEvidence,
    fixed_thresholds,
)

__all__ = [
    "Calibration",
    "CalibrationEvidence",
    "DriftTest",
    "ELond",
    "Peaks",
    "e_value",
    "fixed_thresholds",
]
