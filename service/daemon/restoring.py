"""Goes on with the detector sets that a daemon had before it stopped, or was killed."""

from dataclasses import dataclass, field
from pathlib import Path

from probes.errors import ArtifactError
from service.daemon.detector_sets import DetectorSets
from service.daemon.loaded_set import LoadedSet
from service.daemon.saved_sets import FILE_NAME, SavedSets, SavedSetsError, read_sets


@dataclass(slots=True, kw_only=True)
class Restored:
    """
    What a daemon starts with.

    Attributes:
        state: Which sets are loaded and what each does.

        loaded: By name, each set of *state*.

        configured: Digest of the bundle that the configuration names.

        banks: What engines were told to compute before, as digests of sets.

        problems: What was there before and can not be gone on with, a line each.
    """

    state: DetectorSets
    loaded: dict[str, LoadedSet]
    configured: str
    banks: tuple[tuple[str, ...], ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def live(self) -> LoadedSet:
        """The set that scores the requests that begin."""
        return self.loaded[self.state.live]


def restore(directory: Path, configured: LoadedSet, *, is_new: bool) -> Restored:
    """
    Read what was saved in *directory*, and every bundle that it names again.

    A set whose bundle is gone or altered is left out. Without the live one, or when
    the configuration names another bundle than then, all starts with *configured*.

    Args:
        directory: Of the record.
        configured: What the configuration names.
        is_new: Whether nothing can have been saved there.
    """
    first = Restored(
        state=DetectorSets.first(configured.facts),
        loaded={configured.name: configured},
        configured=configured.digest,
    )
    try:
        saved = read_sets(directory)
    except SavedSetsError as error:
        first.problems.append(str(error))
        return first
    if saved is None:
        if not is_new:
            first.problems.append(f"{directory / FILE_NAME}: found none")
        return first
    if saved.configured != configured.digest:
        first.problems.append(
            f"the configuration names the bundle {configured.digest[:12]}, where it "
            f"named {saved.configured[:12]} before"
        )
        return first
    return _go_on(saved, configured, first)


def _go_on(saved: SavedSets, configured: LoadedSet, first: Restored) -> Restored:
    loaded: dict[str, LoadedSet] = {}
    for one in saved.sets:
        if one.digest == configured.digest and one.path == str(configured.path):
            path, digest = configured.path, configured.digest
        else:
            path, digest = Path(one.path), one.digest
        try:
            loaded[one.name] = LoadedSet.read(path, digest=digest, name=one.name)
        except (ArtifactError, OSError) as error:
            first.problems.append(f"{one.name}: {error}")
    roles = {role: n if n in loaded else "" for role, n in saved.roles.items()}
    if not roles["live"]:
        first.problems.append(f"{saved.roles['live']} was live and can not be now")
        return first
    sets = {name: one.facts for name, one in loaded.items()}
    return Restored(
        state=DetectorSets(sets=sets, **roles),
        loaded=loaded,
        configured=configured.digest,
        banks=saved.banks,
        problems=first.problems,
    )
