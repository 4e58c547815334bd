"""`innerwatch fit`: a recipe and two data sets to a bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError
from service.commands.made import print_made
from service.progress import counting, progress_bar

if TYPE_CHECKING:  # Fitting needs scikit-learn, ``--help`` does not.
    from probes.bundle import Bundle
    from probes.dataset import Dataset


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "fit",
        help="fit and calibrate the detectors of a recipe",
        description="Fits every detector of a TOML recipe on one data set, calibrates "
        "them on another, and writes a bundle for `innerwatch serve`.",
    )
    parser.add_argument("--recipe", required=True, type=Path, help="TOML file")
    parser.add_argument("--fit", required=True, type=Path, help="data set to fit on")
    parser.add_argument(
        "--calibration", required=True, type=Path, help="data set to calibrate on"
    )
    parser.add_argument("--out", required=True, type=Path, help="bundle to write")
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit, save, and print what was made."""
    from probes.bundle import save_bundle
    from probes.dataset import load_dataset

    if args.out.exists():
        raise UsageError(f"--out: expected no such folder, found {args.out}")
    # Beside the bundle, so that the same command goes on where it was interrupted.
    work = args.out.with_name(f"{args.out.name}.unfinished")
    bundle = fit_shown(
        args.recipe,
        load_dataset(args.fit, is_verified=True),
        load_dataset(args.calibration, is_verified=True),
        is_shown=not args.json,
        work=work,
    )
    save_bundle(args.out, bundle)
    if work.is_dir():
        work.rmdir()
    print_made(args.out, bundle, is_json=args.json)
    return 0


def fit_shown(
    recipe: Path,
    fit: "Dataset",
    calibration: "Dataset",
    *,
    is_shown: bool,
    work: Path | None = None,
) -> "Bundle":
    """As `probes.fit.recipe.fit_bundle`, with a bar of the steps done."""
    from probes.fit.plan import load_recipe
    from probes.fit.recipe import fit_bundle, n_steps

    with progress_bar("fitting", n_steps(load_recipe(recipe)), is_shown) as advance:
        return fit_bundle(
            recipe, fit, calibration, progress=counting(advance), work=work
        )
