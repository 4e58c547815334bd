"""`innerwatch fit`: a recipe and two data sets to a bundle."""

import argparse
import json
from pathlib import Path

from service.progress import progress_bar


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "fit",
        help="fit and calibrate the detectors of a recipe",
        description="Fits every detector of a TOML recipe on one data set, chooses "
        "its threshold on another, and writes a bundle for `innerwatch serve`.",
    )
    parser.add_argument("--recipe", required=True, type=Path, help="TOML file")
    parser.add_argument("--fit", required=True, type=Path, help="data set to fit on")
    parser.add_argument(
        "--calibration", required=True, type=Path, help="data set for thresholds"
    )
    parser.add_argument("--out", required=True, type=Path, help="bundle to write")
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit, save, and print what was made."""
    from probes.bundle import save_bundle
    from probes.dataset import load_dataset
    from probes.fit.recipe import fit_bundle

    fit, calibration = load_dataset(args.fit), load_dataset(args.calibration)
    with progress_bar("fitting", None, not args.json) as advance:
        bundle = fit_bundle(
            args.recipe, fit, calibration, progress=lambda *_: advance(0)
        )
    save_bundle(args.out, bundle)
    made = {
        "path": str(args.out),
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "detectors": {
            d.name: {
                "threshold": bundle.calibrations[d.name].threshold,
                "alpha": bundle.calibrations[d.name].alpha,
                "n_benign": bundle.calibrations[d.name].n_benign,
            }
            for d in bundle.detectors
        },
    }
    if args.json:
        print(json.dumps(made))
        return 0
    print(f"{args.out}: {bundle.name} {bundle.version}, digest {bundle.digest[:12]}")
    for detector in bundle.detectors:
        calibration_of = bundle.calibrations[detector.name]
        print(
            f"  {detector.name:<16} threshold {calibration_of.threshold:10.3f}  "
            f"alpha {calibration_of.alpha:.4f}  on {calibration_of.n_benign} requests"
        )
    return 0
