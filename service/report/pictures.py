"""A report's figures as SVG, drawn with Matplotlib."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from probes.fit.report import Report
from probes.fit.report.scored import ALL_DETECTORS
from probes.fit.report.separation import Correlation, Separation

# Okabe and Ito 2008: told apart by those who cannot tell red from green.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
)
_GREY = "#8a8a8a"
# Replaced by the page's own text colour, which is another one in the dark.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "hatch.color": _INK,
}
_WIDTH = 4.2
_MAX_DETECTORS = 11
_MAX_KINDS = 12
_TICKS = (-1000, -100, -10, -1, 0, 1, 10, 100, 1000)


def pictures(report: Report) -> dict[str, str]:
    """Every picture of *report* as inline SVG, by name; the same bytes each time."""
    drawn = {
        "promise": _promise(report),
        "p_values": _p_values(report),
        "roc": _roc(report),
        "histograms": _histograms(report),
        "layers": _layers(report),
        "correlation": _correlation(report),
        "masked": _masked(report),
    }
    return {name: svg for name, svg in drawn.items() if svg}


def colour_of(report: Report, kind: str) -> str:
    """One colour a kind, grey for benign."""
    kinds = sorted({abstained.kind for abstained in report.abstained} - {report.benign})
    return COLOURS[kinds.index(kind) % len(COLOURS)] if kind in kinds else _GREY


def _figure(n_rows: int, n_columns: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH * n_columns, height * n_rows), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for one in axes.flat:
        one.patch.set_alpha(0)
    return figure, list(axes.flat)


def _svg(figure: Figure, salt: str) -> str:
    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _promise(report: Report) -> str:
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(1, 1, 2.8)
        bins = [one for one in report.promise.by_length if one.flagged.of]
        if not bins:
            return ""
        places = np.arange(len(bins))
        shares = np.array([one.flagged.share or 0.0 for one in bins]) * 100
        low = np.array([one.flagged.low for one in bins]) * 100
        high = np.array([one.flagged.high for one in bins]) * 100
        axes.errorbar(
            places,
            shares,
            yerr=np.vstack([shares - low, high - shares]),
            fmt="o",
            color=COLOURS[0],
            capsize=4,
            label="flagged (95 % interval)",
        )
        if report.promise.alpha is not None:
            axes.axhline(
                report.promise.alpha * 100, color=COLOURS[1], ls="--", label="promised"
            )
        axes.set_xticks(
            places,
            [f"{b.above + 1} to {b.up_to}\n({b.flagged.of})" for b in bins],
            rotation=0 if len(bins) < 5 else 60,
        )
        axes.set_xlim(-0.6, len(bins) - 0.4)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens (benign requests)")
        axes.set_ylabel("benign requests flagged, %")
        axes.legend()
        return _svg(figure, "promise")


def _p_values(report: Report) -> str:
    levels = [p for p in report.promise.p_values if p.at_or_below.of]
    if not levels:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(1, 1, 2.8)
        x = np.array([p.level for p in levels])
        y = np.array([p.at_or_below.share or 0.0 for p in levels])
        floor = 0.3 / levels[0].at_or_below.of
        low, high = (
            np.array([max(getattr(p.at_or_below, end), floor) for p in levels])
            for end in ("low", "high")
        )
        shown = np.maximum(y, floor)
        axes.errorbar(
            x,
            shown,
            yerr=np.maximum(np.vstack([shown - low, high - shown]), 0),
            fmt="o",
            color=COLOURS[0],
            capsize=3,
        )
        axes.plot([x[0], 1], [x[0], 1], color=COLOURS[1], ls="--", label="at most this")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("p-value")
        axes.set_ylabel("benign requests at or below it")
        axes.legend()
        return _svg(figure, "p-values")


def _roc(report: Report) -> str:
    kinds = _kinds(report.separations)[:_MAX_KINDS]
    if not kinds:
        return ""
    with matplotlib.rc_context(_STYLE):
        shown = _best(report)
        n_columns = min(len(kinds), 3)
        n_rows = -(-len(kinds) // n_columns)
        figure, axes = _figure(n_rows, n_columns, 3.2)
        for kind, one in zip(kinds, axes, strict=False):
            some = [s for s in report.separations if s.kind == kind]
            _draw_roc(one, [s for s in some if s.detector in shown])
            one.set_title(_plain(kind))
        for one in axes[len(kinds) :]:
            one.set_visible(False)
        _legend_below(figure, axes[0])
        return _svg(figure, "roc")


def _best(report: Report) -> set[str]:
    """The set, and the detectors that are best at anything: what a picture can show."""
    best: dict[str, float] = {}
    for one in report.separations:
        best[one.detector] = max(one.auroc, best.get(one.detector, 0.0))
    names = sorted(best, key=lambda name: -best[name])
    return {ALL_DETECTORS, *[n for n in names if n != ALL_DETECTORS][:_MAX_DETECTORS]}


def _draw_roc(axes: Axes, found: Sequence[Separation]) -> None:
    first = min(
        (r for s in found for r in s.roc_false_positive_rate if r > 0), default=0.01
    )
    left = first / 2
    for index, separation in enumerate(found):
        is_set = separation.detector == ALL_DETECTORS
        axes.step(
            np.maximum(separation.roc_false_positive_rate, left),
            separation.roc_recall,
            where="post",
            label=separation.detector,
            lw=2.2 if is_set else 1.2,
            color=_INK if is_set else COLOURS[(index - 1) % len(COLOURS)],
        )
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("benign requests above the threshold (log)")
    axes.set_ylabel("found")
    for rate in (0.001, 0.01):
        if rate > left:
            axes.axvline(rate, color=_GREY, lw=0.7, ls=":")


def _histograms(report: Report) -> str:
    best = _best(report)
    found = [one for one in report.histograms if one.detector in best]
    if not found:
        return ""
    with matplotlib.rc_context(_STYLE):
        n_columns = min(len(found), 2)
        n_rows = -(-len(found) // n_columns)
        figure, axes = _figure(n_rows, n_columns, 2.4)
        for histogram, one in zip(found, axes, strict=False):
            edges = np.array(histogram.edges)
            for kind, counts in histogram.counts.items():
                total = sum(counts)
                if total:
                    one.stairs(
                        np.array(counts) / total,
                        edges,
                        fill=kind == report.benign,
                        alpha=0.45 if kind == report.benign else 1,
                        color=colour_of(report, kind),
                        label=_plain(kind),
                    )
            one.axvline(0, color=_INK, lw=0.9, ls="--")
            one.set_xscale("asinh")
            ticks = [t for t in _TICKS if edges[0] <= t <= edges[-1]]
            one.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            one.xaxis.set_minor_locator(NullLocator())
            one.set_title(histogram.detector)
            one.set_xlabel("above the boundary (asinh)")
            one.set_ylabel("share of the kind")
        for one in axes[len(found) :]:
            one.set_visible(False)
        _legend_below(figure, axes[0])
        return _svg(figure, "histograms")


def _layers(report: Report) -> str:
    if not report.layers:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(1, 1, 2.8)
        for kind in dict.fromkeys(one.kind for one in report.layers):
            some = [one for one in report.layers if one.kind == kind]
            axes.plot(
                [one.layer for one in some],
                [one.auroc for one in some],
                marker="o",
                color=colour_of(report, kind),
                label=_plain(kind),
            )
        layers = sorted({one.layer for one in report.layers})
        axes.set_xticks(layers)
        axes.axhline(0.5, color=_GREY, lw=0.7, ls=":")
        axes.set_ylim(min(0.45, axes.get_ylim()[0]), 1.02)
        axes.set_xlabel("layer (after block)")
        axes.set_ylabel("AUROC of a difference of means")
        axes.legend()
        return _svg(figure, "layers")


def _correlation(report: Report) -> str:
    with matplotlib.rc_context(_STYLE):
        shown = [c for c in report.correlations if len(c.detectors) > 1]
        if not shown:
            return ""
        figure, axes = _figure(1, len(shown), max(2.6, 0.3 * len(shown[0].detectors)))
        for correlation, one in zip(shown, axes, strict=True):
            _draw_correlation(one, correlation)
        return _svg(figure, "correlation")


def _draw_correlation(axes: Axes, correlation: Correlation) -> None:
    matrix = np.array(
        [[np.nan if x is None else x for x in row] for row in correlation.matrix]
    )
    n = len(correlation.detectors)
    axes.pcolormesh(range(n), range(n), matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks(range(n), correlation.detectors, rotation=45, ha="right")
    axes.set_yticks(range(n), correlation.detectors)
    axes.set_title(f"{correlation.kinds} requests")
    if n > 12:
        return
    for row in range(n):
        for column in range(n):
            value = matrix[row, column]
            axes.text(
                column,
                row,
                "" if np.isnan(value) else f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                # On the colour of the cell, not on the page.
                color="white" if abs(value) > 0.6 else "black",
            )


def _masked(report: Report) -> str:
    drops = [drop for drop in report.masked if drop.detector == ALL_DETECTORS]
    if not drops:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(1, 1, 2.8)
        for drop in drops:
            axes.plot(
                [0, 1],
                [(s.share or 0) * 100 for s in (drop.flagged, drop.flagged_masked)],
                marker="o",
                color=colour_of(report, drop.kind),
                label=_plain(drop.kind),
            )
        axes.set_xticks([0, 1], ["as sent", "trigger text left out"])
        axes.set_xlim(-0.3, 1.3)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("requests flagged, %")
        axes.legend()
        return _svg(figure, "masked")


def _plain(text: str) -> str:
    """*text* as it is: no formula, and no name that a legend leaves out."""
    escaped = text.replace("$", r"\$").encode(errors="replace").decode()
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)


def _kinds(separations: Sequence[Separation]) -> list[str]:
    return list(dict.fromkeys(separation.kind for separation in separations))
