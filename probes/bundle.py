# A bundle is a folder:
#
#     bundle.json             what it is, and the digests of the other two
#     detectors.safetensors   the arrays of detectors and calibration
#     canaries.json           see `probes.canaries`
"""A detector set on disk: JSON and safetensors, never pickle."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors
import safetensors.numpy

from probes.calibration import Calibration
from probes.canaries import Canary, check_canaries, dump_canaries, read_canaries
from probes.codec import Arrays, pack, pack_record, unpack, unpack_record
from probes.detector import Detector, check_name
from probes.errors import ArtifactError
from probes.fields import Fields, dump_json, json_fields
from probes.hooks import layer_of
from probes.identity import NORMALISATIONS, ModelIdentity, check_same_identity

SCHEMA = 3
_JSON_NAME = "bundle.json"
_TENSORS_NAME = "detectors.safetensors"
_CANARIES_NAME = "canaries.json"
# Of its arrays; no detector's, since their names have no leading dot.
_CALIBRATION = ".calibration"
# A distance of full rank takes 64 MiB at d_model 4096, and a TopK SAE gigabytes.
_MAX_BYTES = {_JSON_NAME: 16 << 20, _TENSORS_NAME: 8 << 30, _CANARIES_NAME: 16 << 20}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """
    Detectors, what they are held against, and the model they are for.

    Attributes:
        name: What the set is called.

        version: Which one of that name.

        identity: The model the detectors were fitted on.

        normalisation: One of `probes.identity.NORMALISATIONS`: how the activations
            are normalised that the detectors read.

        fit_sha256: Digest of the data set that they were fitted on; empty where they
            were made by hand.

        detectors: In order.

        calibration: Of all of the detectors, in their order.

        canaries: Prompts, and the columns that the detectors' bank made of them; none
            where they were made by hand.

        digest: SHA-256, hex, of bundle.json, which holds the digest of the rest.
    """

    name: str
    version: str
    identity: ModelIdentity
    normalisation: str
    fit_sha256: str
    detectors: tuple[Detector, ...]
    calibration: Calibration
    canaries: tuple[Canary, ...]
    digest: str

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Where the detectors read, by rising layer."""
        return tuple(_widths(self.detectors))


def new_bundle(
    *,
    name: str,
    version: str,
    identity: ModelIdentity,
    detectors: Sequence[Detector],
    calibration: Calibration,
    canaries: Sequence[Canary] = (),
    normalisation: str = NORMALISATIONS[0],
    fit_sha256: str = "",
) -> Bundle:
    """
    A bundle that is not on disk yet, with the digest that it will have there.

    Raises:
        ArtifactError: The parts do not fit together.
    """
    unsealed = Bundle(
        name=name,
        version=version,
        identity=identity,
        normalisation=normalisation,
        fit_sha256=fit_sha256,
        detectors=tuple(detectors),
        calibration=calibration,
        canaries=tuple(canaries),
        digest="",
    )
    _check_consistent("bundle", unsealed)
    digest = hashlib.sha256(_serialise(unsealed)[_JSON_NAME]).hexdigest()
    return replace(unsealed, digest=digest)


def save_bundle(path: Path, bundle: Bundle) -> str:
    """
    Write *bundle* as the new folder *path*, all of it or nothing.

    Returns:
        The digest of what was written: the same as that of `new_bundle`.

    Raises:
        ArtifactError: *path* exists, or the parts do not fit together. Nothing
            was written.
    """
    if path.exists():
        raise ArtifactError(f"{path}: expected no such folder, found one")
    _check_consistent(str(path), bundle)
    files = _serialise(bundle)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in files.items():
            _write_synced(unfinished / name, content)
        unfinished.chmod(0o755)  # mkdtemp makes it private
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return hashlib.sha256(files[_JSON_NAME]).hexdigest()


def load_bundle(path: Path, *, expected_digest: str | None = None) -> Bundle:
    """
    Read the bundle in the folder *path* and check everything about it.

    The other files are bound by their digests in bundle.json, and bundle.json by
    *expected_digest*: whoever must not trust the folder gives one.

    Raises:
        ArtifactError: Something is missing, unknown, altered, too large or does
            not fit; one line that names file, field, expected and found.
    """
    json_path, tensors_path = path / _JSON_NAME, path / _TENSORS_NAME
    text = _read_limited(json_path)
    digest = hashlib.sha256(text).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise ArtifactError(
            f"{json_path}: sha256: expected {expected_digest}, found {digest}"
        )
    table = json_fields(str(json_path), text)
    _check_schema(table)
    arrays = _read_tensors(tensors_path, table.text("tensors_sha256"))
    canaries_path = path / _CANARIES_NAME
    canaries = _read_bound(canaries_path, table.text("canaries_sha256"))
    hook_points = table.texts("hook_points")
    bundle = Bundle(
        name=table.text("name"),
        version=table.text("version"),
        identity=read_identity(table.table("identity")),
        normalisation=read_normalisation(table),
        fit_sha256=table.text("fit_sha256"),
        detectors=tuple(unpack(item, arrays) for item in table.tables("detectors")),
        calibration=unpack_record(
            Calibration, table.table("calibration"), _CALIBRATION, arrays
        ),
        canaries=read_canaries(canaries_path, canaries),
        digest=digest,
    )
    table.close()
    if arrays:
        raise ArtifactError(f"{tensors_path}: {min(arrays)}: unknown array")
    if hook_points != list(bundle.hook_points):
        table.fail(
            "hook_points",
            f"expected those of the detectors, {list(bundle.hook_points)}, "
            f"found {hook_points}",
        )
    _check_consistent(str(json_path), bundle, str(canaries_path))
    return bundle


def check_identity(
    bundle: Bundle,
    identity: ModelIdentity,
    *,
    hook_points: Collection[str] | None = None,
    normalisation: str | None = None,
    where: str = "",
) -> None:
    """
    Raise `ArtifactError` unless *bundle* was made for what is read.

    Names the first field that differs, with both values; which fields of a model
    count is said at `probes.identity.check_same_identity`.

    Args:
        bundle: Any bundle.

        identity: Of the model that is read.

        hook_points: Where it is read, not looked at if None; there may be more than
            the bundle's.

        normalisation: How that is normalised; not looked at if None.

        where: What is read, for the message; the bundle by default.
    """
    where = where or f"bundle {bundle.name!r}"
    check_same_identity(where, bundle.identity, identity)
    if hook_points is not None and not set(bundle.hook_points) <= set(hook_points):
        raise ArtifactError(
            f"{where}: hook_points: expected {list(bundle.hook_points)}, "
            f"found {sorted(hook_points)}"
        )
    if normalisation is not None and normalisation != bundle.normalisation:
        raise ArtifactError(
            f"{where}: normalisation: expected {bundle.normalisation!r}, "
            f"found {normalisation!r}"
        )


def read_identity(table: Fields) -> ModelIdentity:
    """The identity that ``dataclasses.asdict`` made *table* from."""
    identity = ModelIdentity(
        model=table.text("model"),
        config_sha256=table.text("config_sha256"),
        weights_sha256=table.text("weights_sha256"),
        tokenizer_sha256=table.text("tokenizer_sha256"),
        d_model=table.integer("d_model", minimum=1),
        n_layers=table.integer("n_layers", minimum=1),
        dtype=table.text("dtype"),
    )
    table.close()
    return identity


def read_normalisation(table: Fields, default: str | None = None) -> str:
    """How activations are normalised, which has to be one of `NORMALISATIONS`."""
    normalisation = table.text("normalisation", default)
    if normalisation not in NORMALISATIONS:
        table.fail(
            "normalisation",
            f"expected one of {list(NORMALISATIONS)}, found {normalisation!r}",
        )
    return normalisation


def _serialise(bundle: Bundle) -> dict[str, bytes]:
    """Each file's content; the same bundle gives the same bytes."""
    packed = [pack(detector) for detector in bundle.detectors]
    arrays = {key: array for _, some in packed for key, array in some.items()}
    calibration = pack_record(bundle.calibration, _CALIBRATION, arrays)
    tensors = safetensors.numpy.save(dict(sorted(arrays.items())))
    canaries = dump_canaries(bundle.canaries)
    table: dict[str, object] = {
        "schema": SCHEMA,
        "name": bundle.name,
        "version": bundle.version,
        "identity": asdict(bundle.identity),
        "hook_points": list(bundle.hook_points),
        "normalisation": bundle.normalisation,
        "fit_sha256": bundle.fit_sha256,
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        "canaries_sha256": hashlib.sha256(canaries).hexdigest(),
        "detectors": [table for table, _ in packed],
        "calibration": calibration,
    }
    files = {
        _TENSORS_NAME: tensors,
        _CANARIES_NAME: canaries,
        _JSON_NAME: dump_json(table),
    }
    for name, content in files.items():
        if len(content) > _MAX_BYTES[name]:
            raise ArtifactError(
                f"bundle {bundle.name!r}: {name}: expected at most "
                f"{_MAX_BYTES[name]} bytes, since no more are read, got {len(content)}"
            )
    return files


def _check_schema(table: Fields) -> None:
    schema = table.take("schema")
    if isinstance(schema, bool) or schema != SCHEMA:
        is_earlier = schema in range(1, SCHEMA) and not isinstance(schema, bool)
        hint = ": fit the bundle again" if is_earlier else ""
        table.fail("schema", f"expected {SCHEMA}, found {schema!r}{hint}")


def _check_consistent(where: str, bundle: Bundle, canaries: str = "") -> None:
    """*canaries* is the file that they are from, where there is one."""
    try:
        check_name(bundle.name)
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from error
    if bundle.normalisation not in NORMALISATIONS:
        raise ArtifactError(
            f"{where}: normalisation: expected one of {list(NORMALISATIONS)}, "
            f"found {bundle.normalisation!r}"
        )
    names = [detector.name for detector in bundle.detectors]
    if not names or len(set(names)) < len(names):
        raise ArtifactError(
            f"{where}: detectors: expected different names, found {names}"
        )
    if tuple(names) != bundle.calibration.detectors:
        raise ArtifactError(
            f"{where}: calibration: expected one of {names}, "
            f"found one of {list(bundle.calibration.detectors)}"
        )
    for detector in bundle.detectors:
        _check_fits_model(f"{where}: detector {detector.name!r}", detector, bundle)
    check_canaries(canaries or where, bundle.canaries, _widths(bundle.detectors))


def _widths(detectors: Sequence[Detector]) -> dict[str, int]:
    """By hook point, K_h of the detectors' bank, by rising layer."""
    widths: dict[str, int] = {}
    for detector in detectors:
        for projection in detector.projections:
            known = widths.get(projection.hook_point, 0)
            widths[projection.hook_point] = known + len(projection.weight)
    return dict(sorted(widths.items(), key=lambda item: layer_of(item[0])))


def _check_fits_model(where: str, detector: Detector, bundle: Bundle) -> None:
    identity = bundle.identity
    for projection in detector.projections:
        if projection.d_model != identity.d_model:
            raise ArtifactError(
                f"{where}: d_model: expected {identity.d_model}, "
                f"found {projection.d_model}"
            )
        if layer_of(projection.hook_point) >= identity.n_layers:
            raise ArtifactError(
                f"{where}: hook_point: expected a layer below {identity.n_layers}, "
                f"found {projection.hook_point}"
            )


def _read_tensors(path: Path, expected_sha256: str) -> Arrays:
    content = _read_bound(path, expected_sha256)
    try:
        return dict(safetensors.numpy.load(content))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise ArtifactError(f"{path}: expected safetensors, found {problem}") from error


def _read_bound(path: Path, expected_sha256: str) -> bytes:
    content = _read_limited(path)
    found = hashlib.sha256(content).hexdigest()
    if found != expected_sha256:
        raise ArtifactError(
            f"{path}: sha256: expected {expected_sha256}, found {found}"
        )
    return content


def _read_limited(path: Path) -> bytes:
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a file, found none")
    limit = _MAX_BYTES[path.name]
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ArtifactError(f"{path}: expected at most {limit} bytes, found {size}")
        return file.read(limit)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
