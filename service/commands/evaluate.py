"""`innerwatch evaluate`: what a bundle does on a data set it has not seen."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError
from service.progress import progress_bar

if TYPE_CHECKING:  # Evaluating needs SciPy, ``--help`` does not.
    from tokenizers import Tokenizer

    from probes.dataset import Dataset


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "evaluate",
        help="report what a bundle finds, misses and wrongly flags",
        description="Scores labelled requests that the bundle has not seen, and writes "
        "one HTML file with pictures, and the same figures as JSON beside it.",
    )
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path, help="data set")
    parser.add_argument(
        "--benign",
        required=True,
        metavar="LABEL=VALUE",
        help="which requests must not be flagged; other values of the label are kinds "
        "to be found",
    )
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    parser.add_argument(
        "--masked",
        type=Path,
        help="data set of the same requests, collected with --leave-out",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        help="earlier data set, to compare how often SAE features are on",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="folder with tokenizer.json; the model's by default, where it is here",
    )
    parser.add_argument(
        "--no-text", action="store_true", help="no text of requests in the report"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, and write both files."""
    from probes.bundle import load_bundle
    from probes.dataset import load_dataset
    from probes.fit.report import build_report
    from service.report.page import page, verdict, with_tokens

    label, separator, benign = args.benign.partition("=")
    if not (label and separator and benign):
        raise UsageError(f"--benign: expected LABEL=VALUE, got {args.benign!r}")
    figures = args.out.with_suffix(".json") if args.out.name else args.out
    if figures.is_file() and b'"separations"' not in figures.read_bytes():
        raise UsageError(f"--out: expected no {figures}, or a report's, found another")
    for path in (args.out, figures):
        if not path.name or path.is_dir() or figures == args.out:
            raise UsageError(f"--out: expected a file such as report.html, got {path}")
    bundle, dataset = (
        load_bundle(args.bundle),
        load_dataset(args.data, is_verified=True),
    )
    others = {
        key: load_dataset(path, is_verified=True) if path else None
        for key, path in (("masked", args.masked), ("reference", args.reference))
    }
    tokenizer = None if args.no_text else _tokenizer(args.tokenizer, dataset)
    last = 0
    with progress_bar("evaluating", 6, not args.json) as advance:

        def tell(done: int, total: int, text: str) -> None:
            nonlocal last
            advance(done - last, text)
            last = done

        report = build_report(
            bundle, dataset, label=label, benign=benign, **others, progress=tell
        )
        if args.no_text:
            report = replace(report, examples=())
        elif tokenizer is not None:
            report = with_tokens(report, tokenizer)
        advance(0, "drawing")
        text = page(report)
        advance(1, "done")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(
        json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    args.out.write_text(text, encoding="utf-8")
    if args.json:
        print(json.dumps({"report": str(args.out), "figures": str(figures)}))
    else:
        print(f"{verdict(report)[1]}\n{args.out}\n{figures}")
    return 0


def _tokenizer(folder: Path | None, dataset: "Dataset") -> "Tokenizer | None":
    """What makes text of tokens; without one that fits, ids are shown."""
    from service.report.page import load_tokenizer

    sha256 = dataset.identity.tokenizer_sha256
    if folder is not None:
        found = load_tokenizer(folder, sha256)
        if found is None:
            raise UsageError(f"--tokenizer: expected tokenizer.json in {folder}")
        return found
    try:
        return load_tokenizer(Path(dataset.identity.model), sha256)
    except ValueError:  # another model's by now
        return None
