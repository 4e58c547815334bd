"""What detectors do on a labelled data set: the figures of `innerwatch evaluate`."""

from probes.fit.report.build import Report, build_report

__all__ = ["Report", "build_report"]
