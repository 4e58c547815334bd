"""What a part of the GPU script found: one line of the table."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Finding:
    """*is_met* is None where no bar was set, or none that this machine could meet."""

    part: str
    what: str
    found: str
    bar: str = ""
    is_met: bool | None = None


def save(path: Path, findings: Iterable[Finding]) -> None:
    """Write *findings* as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(f) for f in findings], indent=1))
    partial.rename(path)


def load(path: Path) -> list[Finding]:
    """Read what `save` wrote."""
    return [Finding(**entry) for entry in json.loads(path.read_text())]


def table(findings: Iterable[Finding], conditions: dict[str, str]) -> str:
    """Return one Markdown table, its conditions above it."""
    marks = {True: "yes", False: "**no**", None: ""}
    lines = [
        ", ".join(f"{name}: {value}" for name, value in conditions.items()),
        "",
        "| part | what | found | bar | met |",
        "|---|---|---|---|---|",
    ]
    for f in findings:
        cells = (f.part, f.what, f.found, f.bar, marks[f.is_met])
        lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    return "\n".join(lines)
