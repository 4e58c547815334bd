"""Canaries: prompts that show whether a model still gives what it gave."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes import (
    ArtifactError,
    Detector,
    ProjectionBank,
    load_bundle,
    load_dataset,
    save_bundle,
)
from probes.arrays import Float32
from probes.canaries import (
    TOLERANCES,
    Canary,
    compare,
    dump_canaries,
    read_canaries,
    tolerance_of,
)
from probes.dataset_writer import DatasetWriter
from probes.fit.canaries import choose_canaries
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    identity,
    linear,
    mahalanobis,
    write_dataset,
)
from tests.probes.builders import detectors as all_detectors
from tests.probes.bundle_builders import build, canaries

CANARIES = "canaries.json"


def canary(columns: Float32, norms: Float32 | None = None) -> Canary:
    """A canary at one hook point, with squared norms of 1 unless given."""
    ones = np.ones(len(columns), dtype=np.float32)
    return Canary(
        token_ids=tuple(range(len(columns))),
        columns={HOOK_POINT: columns},
        squared_norms={HOOK_POINT: ones if norms is None else norms},
    )


def numbers(*rows: list[float]) -> Float32:
    return np.array(rows, dtype=np.float32)


def test_every_number_comes_back_exactly() -> None:
    """
    Float32 numbers of any size are the same after writing and reading.
    """
    bits = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    found = bits.view(np.float32)
    extreme = np.array([0, -0.0, 1e-45, 3.4028235e38, 0.1], dtype=np.float32)
    columns = np.concatenate([found[np.isfinite(found)], extreme])[:, None]

    (read,) = read_canaries(Path("x"), dump_canaries([canary(columns)]))

    assert columns.tobytes() == read.columns[HOOK_POINT].tobytes()


def test_a_token_is_a_line() -> None:
    """
    The file can be read by people: each token's columns are one line of it.
    """
    lines = dump_canaries([canary(numbers([0.5, 2], [3, -4]))]).decode().splitlines()

    assert "            [0.5, 2.0]," in lines
    assert "            [3.0, -4.0]" in lines


def test_canaries_are_what_the_bank_makes_of_the_prompts(tmp_path: Path) -> None:
    """
    Tokens are those of benign prompts, columns those of their rows in the data set.
    """
    write_dataset(tmp_path)
    dataset = load_dataset(tmp_path)
    detectors: list[Detector] = [linear(), mahalanobis()]
    benign = [i for i in range(60) if i % 3]

    chosen = choose_canaries(dataset, detectors, benign)

    assert 4 == len({canary.token_ids for canary in chosen})
    prompts = {}
    for index in benign:
        start = dataset.rows_of(index).start
        rows = slice(start, start + 4)
        prompts[tuple(dataset.token_ids[rows].tolist())] = rows
    bank = ProjectionBank.compile(detectors)
    for one in chosen:
        rows = prompts[one.token_ids]
        columns, norms = bank.project(
            {HOOK_POINT: dataset.activations[HOOK_POINT][rows]}
        )
        np.testing.assert_array_equal(columns[HOOK_POINT], one.columns[HOOK_POINT])
        np.testing.assert_array_equal(norms[HOOK_POINT], one.squared_norms[HOOK_POINT])


def test_the_same_choice_for_the_same_seed(tmp_path: Path) -> None:
    """
    The same data set and seed choose the same prompts, another seed others.
    """
    write_dataset(tmp_path)
    dataset = load_dataset(tmp_path)

    first, again, other = (
        dump_canaries(choose_canaries(dataset, [linear()], range(60), seed=seed))
        for seed in (0, 0, 1)
    )

    assert first == again
    assert first != other


def test_what_cannot_be_replayed_is_not_chosen(tmp_path: Path) -> None:
    """
    Unknown tokens, missing first rows and repeated prompts are none; long ones are cut.
    """
    with DatasetWriter(tmp_path, identity(), [HOOK_POINT], D_MODEL) as writer:
        for name, n, first_token, first_position in (
            ("unknown", 8, -1, 0),
            ("cached", 8, 5, 3),
            ("long", 100, 7, 0),
            ("long-again", 100, 7, 0),
            ("empty", 0, 0, 0),
        ):
            writer.append(
                name,
                {HOOK_POINT: floats(n, D_MODEL)},
                np.arange(first_token, first_token + n),
                np.arange(first_position, first_position + n),
                n_prompt_tokens=n - 1 if n else 0,
                labels={},
            )

    chosen = choose_canaries(load_dataset(tmp_path), [linear()], range(5))

    assert [tuple(range(7, 71))] == [canary.token_ids for canary in chosen]


def test_wide_banks_have_shorter_canaries(tmp_path: Path) -> None:
    """
    However many columns there are, a canary file stays within its limit.
    """
    write_dataset(tmp_path)
    dataset, wide = load_dataset(tmp_path), mahalanobis(D_MODEL)
    rows = np.zeros((130_000, D_MODEL), dtype=np.float32)
    projection = replace(
        wide.projections[0], weight=rows, bias=np.zeros(130_000, np.float32)
    )

    class Wide:
        """As many columns as two tokens have room for."""

        name, aggregator, projections = "wide", wide.aggregator, (projection,)

        def head(self, columns: Float32) -> Float32:
            return columns[:, :1]

    chosen = choose_canaries(dataset, [Wide()], range(60))

    assert [1, 1] == [len(canary.token_ids) for canary in chosen]


def test_equal_canaries_differ_by_nothing() -> None:
    """
    What is the same differs by 0, and so do no canaries.
    """
    assert 0 == compare(canaries(all_detectors()), canaries(all_detectors()))
    assert 0 == compare([], [])


def test_a_column_is_held_against_what_is_usual_of_it() -> None:
    """
    A column that is near 0 by chance is not held against itself, a large one is.
    """
    expected = numbers([2, 1], [2, 1], [0.001, 1], [200, 1])
    found = expected + numbers([0, 0], [0, 0], [0.02, 0], [1, 0])

    # 0.02 of a usual 2, 1 of 200, and two tokens of four that did not move.
    mean_square = (0.01**2 + 0.005**2) / 4
    worst = compare([canary(expected)], [canary(found)])
    assert mean_square**0.5 == pytest.approx(worst, rel=1e-4)


def test_a_long_activation_may_move_more() -> None:
    """
    What is usual of a column grows with the length of the activation.
    """
    expected = numbers([1], [1], [0])
    found = expected + numbers([0], [0], [0.5])
    norms = np.array([1, 1, 10_000], dtype=np.float32)

    worst = compare([canary(expected, norms)], [canary(found, norms)])

    assert 0.005 / 3**0.5 == pytest.approx(worst)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_differs_without_end(bad: float) -> None:
    """
    A model that gives NaN or infinity is beyond any tolerance.
    """
    expected = canary(numbers([1], [2]))
    found = canary(numbers([1], [2]))
    found.columns[HOOK_POINT][1, 0] = bad

    assert np.inf == compare([expected], [found])


@pytest.mark.parametrize(
    "other",
    [
        [],
        [canary(numbers([1, 1]))],
        [canary(numbers([1], [1]))],
        [replace(canary(numbers([1])), token_ids=(9,))],
    ],
)
def test_other_canaries_cannot_be_compared(other: list[Canary]) -> None:
    """
    Other tokens, widths or numbers of them are an error and not a difference.
    """
    with pytest.raises(ValueError, match="canaries"):
        compare([canary(numbers([1]))], other)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_is_tolerated_and_another_model_is_not(dtype: str) -> None:
    """
    Activations rounded to the dtype pass, those of another layer do not.
    """
    bank = ProjectionBank.compile([linear("a"), mahalanobis()])
    x = floats(60, D_MODEL, seed=1) * np.float32(20)
    bits = {"float32": 24, "float16": 11, "bfloat16": 8}[dtype]
    mantissa, exponent = np.frexp(x)
    rounded = np.ldexp(np.rint(mantissa * 2**bits) / 2**bits, exponent)
    other = floats(60, D_MODEL, seed=2) * np.float32(20)

    def made(rows: Float32) -> Canary:
        columns, norms = bank.project({HOOK_POINT: rows.astype(np.float32)})
        return Canary(token_ids=tuple(range(60)), columns=columns, squared_norms=norms)

    assert compare([made(x)], [made(rounded)]) <= TOLERANCES[dtype]
    assert compare([made(x)], [made(other)]) > TOLERANCES[dtype]


def test_a_dtype_without_a_tolerance_is_named() -> None:
    """
    How far canaries may differ is known of three dtypes, and guessed of none.
    """
    assert TOLERANCES["bfloat16"] == tolerance_of("bfloat16")
    with pytest.raises(ArtifactError, match=r"identity\.dtype: .*found 'float8'"):
        tolerance_of("float8")


Edit = Callable[[dict[str, Any]], object]


def _place(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["canaries"][1]["hook_points"][HOOK_POINT]
    return found


HOSTILE: list[tuple[str, Edit]] = [
    (r"more: unknown key", lambda d: d.update(more=1)),
    (r"canaries: expected a list", lambda d: d.update(canaries={})),
    (r"canaries\[1\]\.x: unknown", lambda d: d["canaries"][1].update(x=1)),
    (r"canaries\[1\]: token_ids", lambda d: d["canaries"][1].update(token_ids=[])),
    (r"token_ids: exp", lambda d: d["canaries"][1].update(token_ids=[-1] * 5)),
    (r"token_ids: exp", lambda d: d["canaries"][1].update(token_ids=[2**31] * 5)),
    (r"integers only", lambda d: d["canaries"][1].update(token_ids=[True] * 5)),
    (r"integers only", lambda d: d["canaries"][1].update(token_ids=[1.0] * 5)),
    (
        r"canaries\[1\]\.hook_points: expected .*10\.hook",
        lambda d: d["canaries"][1]["hook_points"].pop(LATER_HOOK_POINT),
    ),
    (
        r"canaries\[1\]\.hook_points: expected",
        lambda d: d["canaries"][1]["hook_points"].update(x=_place(d)),
    ),
    (r"hook_points\..*more: unknown", lambda d: _place(d).update(more=1)),
    (r"columns: expected a list", lambda d: _place(d).update(columns=1)),
    (r"columns: expected lists of", lambda d: _place(d).update(columns=[1])),
    (r"columns: expected numbers", lambda d: _place(d).update(columns=[["1"]] * 5)),
    (r"columns: expected numbers", lambda d: _place(d).update(columns=[[True]] * 5)),
    (r"columns: expected numbers", lambda d: _place(d).update(columns=[[[]]] * 5)),
    (r"columns: expected rows", lambda d: _place(d)["columns"][2].pop()),
    (r"columns: expected \(5, K\)", lambda d: _place(d)["columns"].pop()),
    (
        r"columns: expected finite",
        lambda d: _place(d)["columns"][2].__setitem__(0, 1e99),
    ),
    (r"of finite numbers", lambda d: _place(d)["columns"][2].__setitem__(0, 10**400)),
    (r"a token, found 1", lambda d: _place(d).update(columns=[[1.0]] * 5)),
    (r"squared_norms: expected \(5,\)", lambda d: _place(d)["squared_norms"].pop()),
    (
        r"squared_norms: expected none below 0",
        lambda d: _place(d)["squared_norms"].__setitem__(0, -1),
    ),
]


@pytest.mark.parametrize(("match", "edit"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_hostile_canaries_are_refused(tmp_path: Path, match: str, edit: Edit) -> None:
    """
    What is not what it must be is named, even where the digests were made to fit.
    """
    save_bundle(tmp_path / "bundle", build())
    file = tmp_path / "bundle" / CANARIES
    data = json.loads(file.read_bytes())
    edit(data)
    reseal(tmp_path / "bundle", json.dumps(data).encode())

    refused(tmp_path / "bundle", match)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"canaries": [', b"[" * 100_000, b'{"canaries": [NaN]}']
)
def test_other_text_is_refused(tmp_path: Path, text: bytes) -> None:
    """
    What is not one JSON object of finite numbers is refused.
    """
    save_bundle(tmp_path / "bundle", build())
    reseal(tmp_path / "bundle", text)

    refused(tmp_path / "bundle", "expected")


def test_a_bundle_may_have_none(tmp_path: Path) -> None:
    """
    Detectors that were made by hand have no canaries.
    """
    save_bundle(tmp_path / "bundle", build(canaries=()))

    assert () == load_bundle(tmp_path / "bundle").canaries


def reseal(bundle: Path, text: bytes) -> None:
    """Write *text* as the canaries of *bundle*, with a digest that fits."""
    (bundle / CANARIES).write_bytes(text)
    data = json.loads((bundle / "bundle.json").read_bytes())
    data["canaries_sha256"] = hashlib.sha256(text).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(data))


def refused(bundle: Path, match: str) -> None:
    """Loading raises one line that names the file and says *match*."""
    with pytest.raises(ArtifactError, match=match) as caught:
        load_bundle(bundle)
    assert CANARIES in str(caught.value)
    assert "\n" not in str(caught.value)
