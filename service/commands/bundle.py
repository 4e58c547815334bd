"""``innerwatch bundle``: what is in a bundle, how two differ, whether one holds."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError
from service.commands.calibrations import calibration_facts, print_calibration

if TYPE_CHECKING:  # NumPy is not needed for ``--help``.
    from probes.bundle import Bundle
    from probes.bundle_diff import Difference
    from probes.detector import Detector

_SHOWN_CHARACTERS = 60


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``bundle show``, ``bundle diff`` and ``bundle verify``."""
    parser = subparsers.add_parser("bundle", help="show, compare and verify bundles")
    actions = parser.add_subparsers(required=True, metavar="action")
    showing = actions.add_parser("show", help="print what is in one")
    showing.add_argument("path", type=Path, help="the bundle's folder")
    showing.set_defaults(run=run, act=_show)
    differing = actions.add_parser(
        "diff",
        help="print what differs between two",
        description="Prints each field in which two bundles differ. Exit status 0: "
        "they are the same; 1: they are not.",
    )
    differing.add_argument("a", type=Path, metavar="A", help="a bundle's folder")
    differing.add_argument("b", type=Path, metavar="B", help="another's")
    differing.set_defaults(run=run, act=_diff)
    verifying = actions.add_parser(
        "verify",
        help="check one against its digest, a model and a data set",
        description="Checks every file of a bundle. With --model, that it was made for "
        "that model; with --data, that its canaries come out as they did, and with "
        "--benign how many of those requests it flags. Exit status 1: canaries differ, "
        "or the rate is above what is promised.",
    )
    _add_verify(verifying)
    for action in (showing, differing, verifying):
        action.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Show, diff or verify; 2 if a bundle cannot be loaded."""
    status: int = args.act(args)
    return status


def _add_verify(verifying: argparse.ArgumentParser) -> None:
    verifying.add_argument("path", type=Path, help="the bundle's folder")
    verifying.add_argument("--digest", metavar="HEX", help="that it has to have")
    verifying.add_argument("--model", type=Path, help="the model's folder")
    verifying.add_argument("--data", type=Path, help="data set of the same model")
    verifying.add_argument(
        "--benign",
        metavar="LABEL=VALUE",
        help="which of its requests are benign; a value is JSON or else a string",
    )
    verifying.set_defaults(run=run, act=_verify)


def _show(args: argparse.Namespace) -> int:
    from probes.bundle import load_bundle

    bundle = load_bundle(args.path)
    if args.json:
        print(json.dumps({"path": str(args.path), **describe(bundle)}))
        return 0
    identity = bundle.identity
    n_tokens = sum(len(canary.token_ids) for canary in bundle.canaries)
    canaries = f"{len(bundle.canaries)} prompts, {n_tokens} tokens"
    print(f"{args.path}: {bundle.name} {bundle.version}")
    for title, text in (
        ("digest", bundle.digest),
        ("model", identity.model),
        ("config", identity.config_sha256),
        ("weights", identity.weights_sha256 or "unknown"),
        ("tokenizer", identity.tokenizer_sha256 or "unknown"),
        ("read as", f"{identity.dtype}, d_model {identity.d_model}"),
        ("layers", str(identity.n_layers)),
        ("hook points", ", ".join(bundle.hook_points)),
        ("normalised", bundle.normalisation),
        ("fitted on", bundle.fit_sha256 or "unknown: made by hand"),
        ("canaries", canaries if bundle.canaries else "none"),
    ):
        print(f"{title:<13}{text}")
    print("detectors")
    rows = [_cells(detector) for detector in bundle.detectors]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells).rstrip()}")
    print("calibration")
    print_calibration(bundle.calibration)
    return 0


def describe(bundle: "Bundle") -> dict[str, object]:
    """What JSON output says of *bundle*."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "identity": asdict(bundle.identity),
        "hook_points": list(bundle.hook_points),
        "normalisation": bundle.normalisation,
        "fit_sha256": bundle.fit_sha256,
        "detectors": [_detector_facts(detector) for detector in bundle.detectors],
        "calibration": calibration_facts(bundle.calibration),
        "canaries": [
            {"n_tokens": len(canary.token_ids), "token_ids": list(canary.token_ids)}
            for canary in bundle.canaries
        ],
    }


def _detector_facts(detector: "Detector") -> dict[str, object]:
    from probes.codec import family_of
    from probes.detector import ActivationDetector

    return {
        "name": detector.name,
        "family": family_of(detector),
        "columns": _columns(detector),
        "aggregator": detector.aggregator.to_json(),
        "reads_activations": isinstance(detector, ActivationDetector),
    }


def _columns(detector: "Detector") -> dict[str, int]:
    """By hook point, how many columns it asks for."""
    columns: dict[str, int] = {}
    for projection in detector.projections:
        known = columns.get(projection.hook_point, 0)
        columns[projection.hook_point] = known + len(projection.weight)
    return columns


def _cells(detector: "Detector") -> tuple[str, str, str, str]:
    from probes.codec import family_of

    columns = _columns(detector).items()
    places = ", ".join(f"{hook_point} ({n})" for hook_point, n in columns)
    options = dict(detector.aggregator.to_json())
    aggregator = str(options.pop("name"))
    for key, value in sorted(options.items()):
        aggregator += f" {key}={value}"
    return detector.name, family_of(detector), aggregator, places


def _diff(args: argparse.Namespace) -> int:
    from probes.bundle import load_bundle
    from probes.bundle_diff import diff_bundles

    a, b = load_bundle(args.a), load_bundle(args.b)
    differences = diff_bundles(a, b)
    if args.json:
        facts = {"a": str(args.a), "b": str(args.b)}
        print(json.dumps(facts | {"differences": [asdict(d) for d in differences]}))
    else:
        for difference in differences:
            print(_difference_text(difference))
        if not differences:
            print(f"the same: {a.digest}")
    return 1 if differences else 0


def _difference_text(difference: "Difference") -> str:
    field, a, b = difference.field, difference.a, difference.b
    if a is None or b is None:
        side, value = ("B", b) if a is None else ("A", a)
        return f"{field}: only in {side}: {_short(value)}"
    measures = []
    if difference.max_abs_diff is not None:
        measures.append(f"max |A - B| {difference.max_abs_diff:.4g}")
    if difference.cosine is not None:
        measures.append(f"cosine {difference.cosine:.6f}")
    if a == b:  # two arrays of one shape
        return f"{field}: {', '.join([_short(a), *measures])}"
    return f"{field}: {_short(a)} -> {_short(b)}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > _SHOWN_CHARACTERS + 4:
        return f"{text[:_SHOWN_CHARACTERS]} ..."
    return text


def _verify(args: argparse.Namespace) -> int:
    from probes.bundle import load_bundle
    from service.commands.verifying import print_facts, verify

    if args.benign is not None and args.data is None:
        raise UsageError("--benign: expected --data, too")
    bundle = load_bundle(args.path, expected_digest=args.digest)
    facts, problems = verify(
        bundle,
        model=args.model,
        data=args.data,
        benign=args.benign,
        is_shown=not args.json,
    )
    if args.json:
        print(json.dumps({"path": str(args.path)} | facts | {"problems": problems}))
    else:
        print(f"{args.path}: {bundle.name} {bundle.version}")
        print_facts(facts)
    if problems:
        raise RuntimeError(f"{args.path}: {'; '.join(problems)}")
    return 0
