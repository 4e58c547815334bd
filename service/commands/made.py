"""Shows a bundle that was written, and how the daemon is given it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.calibrations import calibration_facts, print_calibration

if TYPE_CHECKING:
    from probes.bundle import Bundle


def print_made(path: Path, bundle: "Bundle", *, is_json: bool) -> None:
    """Print what *bundle*, written to *path*, promises, and how it is used."""
    if is_json:
        made = {
            "path": str(path),
            "name": bundle.name,
            "version": bundle.version,
            "digest": bundle.digest,
            "calibration": calibration_facts(bundle.calibration),
        }
        print(json.dumps(made))
        return
    print(f"{path}: {bundle.name} {bundle.version}")
    print_calibration(bundle.calibration)
    print(f"for monitor.toml:\n\n{detectors_section(path, bundle.digest)}", end="")


def detectors_section(bundle: Path, digest: str) -> str:
    """Return monitor.toml's section that takes the bundle with *digest* only."""
    # A JSON string without escaped letters is a TOML string.
    path = json.dumps(str(bundle.resolve()), ensure_ascii=False)
    return f'[detectors]\nbundle = {path}\ndigest = "{digest}"\n'
