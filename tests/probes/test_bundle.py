"""Bundles on disk: the same bytes, or refused."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes import (
    ArtifactError,
    Calibration,
    ProjectionBank,
    check_identity,
    load_bundle,
    save_bundle,
)
from tests.probes.builders import (
    HOOK_POINT,
    LATER_HOOK_POINT,
    detectors,
    identity,
    linear,
)
from tests.probes.bundle_builders import build

TENSORS = "detectors.safetensors"
CANARIES = "canaries.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", build())
    return tmp_path / "bundle"


def refused(path: Path, match: str) -> None:
    """Loading *path* raises one line that says *match*."""
    with pytest.raises(ArtifactError, match=match) as caught:
        load_bundle(path)
    assert "\n" not in str(caught.value)


def test_round_trip(path: Path) -> None:
    """
    What was saved is what is loaded: names, identity, calibration, canaries, digest.
    """
    built, loaded = build(), load_bundle(path)

    assert (built.name, built.version) == (loaded.name, loaded.version)
    assert built.identity == loaded.identity
    assert ("none", "f" * 64) == (loaded.normalisation, loaded.fit_sha256)
    assert (HOOK_POINT, LATER_HOOK_POINT) == loaded.hook_points
    assert ProjectionBank.compile(loaded.detectors).hook_points == loaded.hook_points
    assert built.calibration.evidence == loaded.calibration.evidence
    for one in fields(Calibration):
        ours, theirs = (getattr(b.calibration, one.name) for b in (built, loaded))
        np.testing.assert_array_equal(ours, theirs)
    assert [d.name for d in built.detectors] == [d.name for d in loaded.detectors]
    for ours, theirs in zip(built.canaries, loaded.canaries, strict=True):
        assert ours.token_ids == theirs.token_ids
        for hook_point, columns in ours.columns.items():
            np.testing.assert_array_equal(columns, theirs.columns[hook_point])
            np.testing.assert_array_equal(
                ours.squared_norms[hook_point], theirs.squared_norms[hook_point]
            )
    assert built.digest == loaded.digest


def test_same_bundle_same_bytes(tmp_path: Path) -> None:
    """
    Saving twice gives the same files, and the digest that was promised.
    """
    digests = [save_bundle(tmp_path / name, build()) for name in ("a", "b")]

    for name in ("bundle.json", TENSORS, CANARIES):
        first, second = ((tmp_path / x / name).read_bytes() for x in ("a", "b"))
        assert first == second
    assert [build().digest] * 2 == digests
    text = (tmp_path / "a" / "bundle.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == digests[0]


def test_what_was_loaded_is_saved_as_it_was(path: Path, tmp_path: Path) -> None:
    """
    Loading and saving again changes no byte of any file.
    """
    save_bundle(tmp_path / "again", load_bundle(path))

    for name in ("bundle.json", TENSORS, CANARIES):
        assert (path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_existing_folder_is_left_alone(path: Path) -> None:
    """
    A bundle is never overwritten, and nothing unfinished is left beside it.
    """
    with pytest.raises(ArtifactError, match="found one"):
        save_bundle(path, build())

    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("position", [0, 1, 7, 9, 60, 200, 900, -1, -40])
def test_a_flipped_byte_of_the_tensors_is_refused(path: Path, position: int) -> None:
    """
    One changed byte anywhere in the tensors is refused, naming the file.
    """
    content = bytearray((path / TENSORS).read_bytes())
    content[position] ^= 1
    (path / TENSORS).write_bytes(content)

    refused(path, f"{TENSORS}: sha256")


@pytest.mark.parametrize("n_bytes", [0, 5, 100, 1000])
def test_truncated_tensors_are_refused(path: Path, n_bytes: int) -> None:
    """
    A file that was cut short is refused, naming it.
    """
    content = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(content[:n_bytes])

    refused(path, TENSORS)


@pytest.mark.parametrize("name", ["bundle.json", TENSORS, CANARIES])
def test_missing_file_is_refused(path: Path, name: str) -> None:
    """
    A missing file is refused, naming it.
    """
    (path / name).unlink()

    refused(path, f"{name}: expected a file")


def test_flipped_bytes_of_the_json_are_refused_or_change_the_digest(
    path: Path,
) -> None:
    """
    No changed byte of bundle.json passes whoever gives the digest; most pass nobody.
    """
    file = path / "bundle.json"
    original, digest = file.read_bytes(), build().digest
    for position in range(0, len(original), 29):
        content = bytearray(original)
        content[position] ^= 1
        file.write_bytes(content)

        with pytest.raises(ArtifactError, match=r"bundle\.json: sha256"):
            load_bundle(path, expected_digest=digest)
        with contextlib.suppress(ArtifactError):
            assert digest != load_bundle(path).digest


Edit = Callable[[dict[str, object]], object]


def _detector(data: dict[str, object], index: int) -> dict[str, object]:
    items = data["detectors"]
    assert isinstance(items, list)
    found: dict[str, object] = items[index]
    return found


def _calibration(data: dict[str, object]) -> dict[str, Any]:
    return _table(data, "calibration")


def _table(data: dict[str, object], key: str) -> dict[str, object]:
    found = data[key]
    assert isinstance(found, dict)
    return found


EDITS: list[tuple[str, Edit]] = [
    (r"schema: expected 3, found 2: fit .* again", lambda d: d.update(schema=2)),
    (r"schema: expected 3, found 4$", lambda d: d.update(schema=4)),
    (r"schema: expected 3, found True$", lambda d: d.update(schema=True)),
    (r"hook_points: expected those .*1\.hook", lambda d: d.update(hook_points=[])),
    (r"hook_points: expected strings", lambda d: d.update(hook_points=[1])),
    (
        r"normalisation: expected one of \['none'\], found 'layer_norm'",
        lambda d: d.update(normalisation="layer_norm"),
    ),
    (r"normalisation: expected a string", lambda d: d.pop("normalisation")),
    (r"canaries\.json: sha256: exp", lambda d: d.update(canaries_sha256="0" * 64)),
    (r"extra: unknown key", lambda d: d.update(extra=1)),
    (r"version: expected a string", lambda d: d.pop("version")),
    (r"name: expected at most 64", lambda d: d.update(name="../up")),
    (r"identity: expected a table", lambda d: d.update(identity=[])),
    (r"identity\.dtype", lambda d: _table(d, "identity").pop("dtype")),
    (r"identity\.more: unknown", lambda d: _table(d, "identity").update(more=1)),
    (r"d_model: expected 13", lambda d: _table(d, "identity").update(d_model=13)),
    (r"a layer below 10", lambda d: _table(d, "identity").update(n_layers=10)),
    (r"detectors: expected a list", lambda d: d.update(detectors={})),
    (r"attention_mean/bias: unknown array", lambda d: d.update(detectors=[])),
    (r"detectors\[0\]\.family", lambda d: _detector(d, 0).update(family="forest")),
    (r"detectors\[0\]\.bias", lambda d: _detector(d, 0).update(bias="0")),
    (r"finite", lambda d: _detector(d, 0).update(bias=1e300)),
    (r"bias: expected a finite", lambda d: _detector(d, 0).update(bias=10**400)),
    (r"detectors\[0\]\.more", lambda d: _detector(d, 0).update(more=1)),
    (
        r"detectors\[0\]\.weight: expected an array other/weight",
        lambda d: _detector(d, 0).update(name="other"),
    ),
    (r"'blocks\.L", lambda d: _detector(d, 0).update(hook_point="layer 3")),
    (r"detectors\[0\]: name", lambda d: _detector(d, 0).update(aggregator={})),
    (r"calibration\.evidence: expected", lambda d: _calibration(d).update(evidence=1)),
    (
        r"calibration: expected one of",
        lambda d: (
            _calibration(d)["detectors"].insert(0, "x")
            or _calibration(d)["detectors"].pop()
        ),
    ),
    (r"evidence: alpha", lambda d: _calibration(d)["evidence"].update(alpha=0)),
    (
        r"realised_low: expected a finite",
        lambda d: _calibration(d)["evidence"].update(realised_low=10**400),
    ),
    (
        r"evidence: n_flagged",
        lambda d: _calibration(d)["evidence"].update(n_flagged=[999]),
    ),
    (
        r"alpha: expected a finite",
        lambda d: _detector(d, 0).update(
            aggregator={"name": "ema_max", "alpha": -(10**400)}
        ),
    ),
]


@pytest.mark.parametrize(("match", "edit"), EDITS, ids=[e[0] for e in EDITS])
def test_edited_json_is_refused(path: Path, match: str, edit: Edit) -> None:
    """
    A key that is missing, unknown or impossible is refused by its name.
    """
    file = path / "bundle.json"
    data = json.loads(file.read_bytes())
    edit(data)
    file.write_text(json.dumps(data))

    refused(path, match)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 1, "schema": 1}', "[" * 100_000, "\x00"]
)
def test_other_text_is_refused(path: Path, text: str) -> None:
    """
    What is not one JSON object without repeated keys is refused.
    """
    (path / "bundle.json").write_text(text)

    refused(path, r"bundle\.json")


def test_nan_is_refused(path: Path) -> None:
    """
    A promise of NaN is refused.
    """
    file = path / "bundle.json"
    file.write_text(file.read_text().replace("0.05", "NaN"))

    refused(path, "NaN")


@pytest.mark.parametrize(("name", "limit"), [(TENSORS, 8 << 30), (CANARIES, 16 << 20)])
def test_huge_file_is_refused_before_it_is_read(
    path: Path, name: str, limit: int
) -> None:
    """
    A file beyond the limit is refused by its size alone.
    """
    with (path / name).open("r+b") as file:
        file.truncate(limit + 1)

    refused(path, f"{name}: expected at most {limit} bytes")


def test_altered_canaries_are_refused(path: Path) -> None:
    """
    One changed digit of one expected column is refused, naming the file.
    """
    text = (path / CANARIES).read_text()
    (path / CANARIES).write_text(text.replace("1", "2", 1))

    refused(path, f"{CANARIES}: sha256")


def test_detectors_and_calibrations_must_agree() -> None:
    """
    A detector without a boundary cannot be part of a bundle.
    """
    with pytest.raises(ArtifactError, match="calibration: expected one of"):
        build(detectors=[*detectors(), linear("more")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config_sha256", "b" * 64),
        ("weights_sha256", "b" * 64),
        ("weights_sha256", ""),
        ("tokenizer_sha256", "b" * 64),
        ("d_model", 13),
        ("n_layers", 12),
        ("dtype", "bfloat16"),
    ],
)
def test_another_model_is_refused(field: str, value: str | int) -> None:
    """
    The first field that differs is named, with both values.
    """
    with pytest.raises(ArtifactError, match=f"identity.{field}: .*found {value!r}"):
        check_identity(build(), identity(**{field: value}))


@pytest.mark.parametrize("changes", [{}, {"model": "/x"}, {"tokenizer_sha256": ""}])
def test_the_same_model_elsewhere_is_accepted(changes: dict[str, str | int]) -> None:
    """
    Where the model lies does not matter, nor a tokenizer that is not known.
    """
    check_identity(build(), identity(**changes))


def test_where_and_how_it_is_read_is_part_of_the_identity() -> None:
    """
    A missing hook point and another normalisation are named, with both values.
    """
    places = (HOOK_POINT, LATER_HOOK_POINT, "blocks.2.hook_resid_post")
    check_identity(build(), identity(), hook_points=places, normalisation="none")

    with pytest.raises(ArtifactError, match=r"hook_points: .*10\.hook.*found \['bl"):
        check_identity(build(), identity(), hook_points=places[:1])
    with pytest.raises(ArtifactError, match="normalisation: expected 'none', found 'x"):
        check_identity(build(), identity(), normalisation="x")
    with pytest.raises(ArtifactError, match="normalisation: expected one of"):
        build(normalisation="x")
