"""Which SAE checkpoint a detector of a recipe reads, and what its files do not say."""

from dataclasses import dataclass
from pathlib import Path

from probes.fields import Fields
from probes.fit.plan_common import named
from probes.hooks import check_hook_point
from probes.sae_formats import FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """
    An SAE to be read; see `probes.sae_formats.load_sae`.

    Attributes:
        path: The checkpoint's folder or file.

        format: One of `FORMATS`; None is told from the files.

        model_name: What the checkpoint calls the model that is watched, which data
            sets know by its files; "" where the recipe does not say.

        scale: What activations are multiplied by, where the files do not say it.

        k: How many features are on, where the files do not say it.

        hook_points: Where a crosscoder reads, one a source; None is the detector's.
    """

    path: Path
    format: str | None = None
    model_name: str = ""
    scale: float | None = None
    k: int | None = None
    hook_points: tuple[str, ...] | None = None


def read_checkpoint(table: Fields, folder: Path) -> CheckpointPlan:
    """Take the keys of a checkpoint from *table*; paths are relative to *folder*."""
    name = table.text("format", "")
    if name and name not in FORMATS:
        table.fail("format", f"expected one of {list(FORMATS)}, found {name!r}")
    return CheckpointPlan(
        path=folder / table.text("path"),
        format=name or None,
        model_name=table.text("model_name", ""),
        scale=table.number("scale") if table.has("scale") else None,
        k=table.integer("k", minimum=1) if table.has("k") else None,
        hook_points=_sources(table) if table.has("hook_points") else None,
    )


def _sources(table: Fields) -> tuple[str, ...]:
    hook_points = table.texts("hook_points")
    for hook_point in hook_points:
        named(table, "hook_points", check_hook_point, hook_point)
    if len(set(hook_points)) < len(hook_points) or len(hook_points) < 2:
        table.fail("hook_points", f"expected different ones, found {hook_points}")
    return tuple(hook_points)
