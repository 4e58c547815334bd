"""What of a checkpoint tells its format: file names, configuration keys, tensors."""

from dataclasses import dataclass
from pathlib import Path

from probes.errors import ArtifactError
from probes.sae_formats.npz_file import open_npz
from probes.sae_formats.safetensors_file import open_safetensors
from probes.sae_formats.tensors import Tensors, read_json
from probes.sae_formats.torch_file import open_torch

_OPEN = {
    ".safetensors": open_safetensors,
    ".npz": open_npz,
    ".pt": open_torch,
    ".pth": open_torch,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """
    A glance at a path, before any number is read.

    Attributes:
        path: A folder, or a file.

        files: Names of the files in the folder; none of a file.

        shapes: Of the one file's tensors, by name; none of a folder.

        plain: Names of what the one file holds beside tensors.
    """

    path: Path
    files: frozenset[str]
    shapes: dict[str, tuple[int, ...]]
    plain: frozenset[str]

    @property
    def name(self) -> str:
        """Of the one file; "" of a folder."""
        return "" if self.files else self.path.name

    def has(self, *names: str) -> bool:
        """Whether the folder holds these files, or their index of shards."""
        return all({name, f"{name}.index.json"} & self.files for name in names)

    def has_tensors(self, *names: str) -> bool:
        """Whether the one file holds these tensors."""
        return set(names) <= self.shapes.keys()

    def config(self, name: str) -> dict[str, object]:
        """The keys of the JSON file *name* of the folder; none where it is absent."""
        return read_json(self.path / name).data if name in self.files else {}


def look_at(path: Path) -> Look:
    """
    A look at *path*.

    Raises:
        ArtifactError: Nothing is there, or a file cannot be read.
    """
    if path.is_dir():
        files = frozenset(entry.name for entry in path.iterdir() if entry.is_file())
        if not files:
            raise ArtifactError(f"{path}: expected a checkpoint, found no file")
        return Look(path=path, files=files, shapes={}, plain=frozenset())
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a folder or a file, found none")
    if path.suffix not in _OPEN:
        raise ArtifactError(
            f"{path}: expected a folder or one of {sorted(_OPEN)}, "
            f"found {path.suffix!r}"
        )
    tensors: Tensors = _OPEN[path.suffix](path)
    return Look(
        path=path,
        files=frozenset(),
        shapes={name: tensors.declared(name) for name in tensors.names},
        plain=frozenset(tensors.plain),
    )
