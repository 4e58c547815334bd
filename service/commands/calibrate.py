"""``innerwatch calibrate``: new boundaries for the detectors of a bundle."""

import argparse
from pathlib import Path

from service.cli import UsageError
from service.commands.made import print_made
from service.progress import counting, progress_bar


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "calibrate",
        help="calibrate the detectors of a bundle again, on another data set",
        description="Writes a bundle with the detectors of another and new boundaries, "
        "chosen on benign requests that nothing was fitted on.",
    )
    parser.add_argument("--bundle", required=True, type=Path, help="whose detectors")
    parser.add_argument(
        "--calibration", required=True, type=Path, help="data set to calibrate on"
    )
    parser.add_argument(
        "--recipe",
        required=True,
        type=Path,
        help="TOML file with [calibration], which has to say which requests are benign",
    )
    parser.add_argument("--version", required=True, help="of the new bundle")
    parser.add_argument("--out", required=True, type=Path, help="bundle to write")
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate, save, and print what was made."""
    from probes.bundle import load_bundle, save_bundle
    from probes.dataset import load_dataset
    from probes.fit.recalibrate import recalibrate

    if args.out.exists():
        raise UsageError(f"--out: expected no such folder, found {args.out}")
    old = load_bundle(args.bundle)
    if args.version == old.version:
        raise UsageError(
            f"--version: expected another than that of {args.bundle}, "
            f"got {args.version!r}"
        )
    dataset = load_dataset(args.calibration, is_verified=True)
    with progress_bar("calibrating", 100, not args.json) as advance:
        tell = counting(advance)
        bundle = recalibrate(
            old,
            dataset,
            args.recipe,
            version=args.version,
            progress=lambda done, of: tell(100 * done // of, 100),
        )
    save_bundle(args.out, bundle)
    print_made(args.out, bundle, is_json=args.json)
    return 0
