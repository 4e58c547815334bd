"""What the caller knows about a checkpoint, held against what its files say."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from probes.errors import ArtifactError
from probes.hooks import canonical_hook_point

# A module of transformers whose output is the residual stream after a block.
_BLOCK = re.compile(r"(?:\w+\.)*(?:layers|h)\.(0|[1-9][0-9]{0,3})(?:\.output)?")

# What a transcoder reads, as TransformerLens, SAELens and transformers call it.
MLP_INPUTS = (
    "hook_mlp_in",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "pre_feedforward_layernorm.output",
)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")


@dataclass(slots=True, kw_only=True)
class Given:
    """
    The caller's word on what a file may not say. None is: not said.

    Attributes:
        hook_points: Where the SAE reads, one a source.

        model_name: The model it was trained on.

        scale: What activations are multiplied by before the encoder; for formats
            that were trained on scaled activations and do not store the scale.

        k: How many features are on, where only the release's name says so.
    """

    hook_points: tuple[str, ...] | None = None
    model_name: str | None = None
    scale: float | None = None
    k: int | None = None
    _taken: set[str] = field(default_factory=set)

    def places(self, file: Path, found: tuple[str, ...] | None) -> tuple[str, ...]:
        """
        Where the SAE reads, in TransformerLens' names.

        Args:
            file: What is being read, for messages.

            found: What the file says, in any names, or None.

        Raises:
            ArtifactError: Nobody says it, the two differ, or it is no name.
        """
        given = None
        if self.hook_points is not None:
            given = tuple(place_of(file, name) for name in self.hook_points)
        if found is None:
            if given is None:
                raise ArtifactError(
                    f"{file}: hook_point: the file does not say where the SAE reads; "
                    f"give it, such as 'blocks.15.hook_resid_post'"
                )
            return given
        places = tuple(place_of(file, name) for name in found)
        if given not in (None, places):
            raise ArtifactError(
                f"{file}: hook_point: expected {_words(given or ())}, as given, "
                f"found {_words(places)}"
            )
        return places

    def model(self, file: Path, found: str | None) -> str:
        """
        The model that the SAE was trained on.

        Raises:
            ArtifactError: Nobody says it, or the two differ.
        """
        if not found:
            if not self.model_name:
                raise ArtifactError(
                    f"{file}: model_name: the file does not say which model the SAE "
                    f"was trained on; give it"
                )
            return self.model_name
        if self.model_name not in (None, "", found):
            raise ArtifactError(
                f"{file}: model_name: expected {self.model_name!r}, as given, "
                f"found {found!r}"
            )
        return found

    def scaling(self, file: Path, found: float | None) -> float:
        """
        What activations are multiplied by before the encoder.

        Raises:
            ArtifactError: Nobody says it, the two differ, or it is not above 0.
        """
        self._taken.add("scale")
        scale = self.scale if found is None else found
        if scale is None:
            raise ArtifactError(
                f"{file}: scale: the SAE was trained on scaled activations and the "
                f"file does not hold the scale; give it"
            )
        if self.scale is not None and abs(self.scale - scale) > 1e-6 * abs(scale):
            raise ArtifactError(
                f"{file}: scale: expected {self.scale}, as given, found {scale}"
            )
        if not 0 < scale < float("inf"):
            raise ArtifactError(f"{file}: scale: expected one above 0, found {scale}")
        return scale

    def active(self, file: Path, found: int | None) -> int:
        """
        How many features are on.

        Raises:
            ArtifactError: Nobody says it, or the two differ.
        """
        self._taken.add("k")
        if found is None and self.k is None:
            raise ArtifactError(
                f"{file}: k: the file does not say how many features are on; give it"
            )
        if found is not None and self.k not in (None, found):
            raise ArtifactError(
                f"{file}: k: expected {self.k}, as given, found {found}"
            )
        k = self.k if found is None else found
        if k is None or k < 1:
            raise ArtifactError(f"{file}: k: expected at least 1, found {k}")
        return k

    def check_taken(self, file: Path) -> None:
        """Raise `ArtifactError` if something was given that *file* has no use for."""
        for key in ("scale", "k"):
            value = getattr(self, key)
            if value is not None and key not in self._taken:
                raise ArtifactError(
                    f"{file}: {key}: expected none for an SAE of this kind, got {value}"
                )


def place_of(file: Path, name: str) -> str:
    """
    The TransformerLens name of the place *name*; of other places the name itself.

    Raises:
        ArtifactError: *name* is no name.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"{file}: hook_point: expected a name of at most 200 of "
            f"A-Z a-z 0-9 _ . -, found {name[:80]!r}"
        )
    block = _BLOCK.fullmatch(name)
    if block:
        return f"blocks.{int(block[1])}.hook_resid_post"
    try:
        return canonical_hook_point(name)
    except ValueError:
        return name


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
