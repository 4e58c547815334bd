"""The parts of the audit page that need no browser and no daemon."""

import doctest
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("tokenizers")

from service.config import ConfigError
from service.daemon.audit.pages import PageReader
from service.daemon.audit.records import Entries
from service.daemon.audit.rows import FlagRow, RequestDetail, SummaryRow
from service.daemon.loaded_set import LoadedSet
from service.daemon.web import flags, formats, naming
from service.daemon.web.heat import heat_map
from service.daemon.web.hours import HOUR, Hours
from service.daemon.web.likeness import detector_views
from service.daemon.web.reservations import Reservations
from service.daemon.web.tokenizer import ShownTexts
from tests.service.recording import flag, summary, write
from tests.web.history import TOKENIZER, place_with_bundle


@pytest.mark.parametrize("module", [flags, formats, naming])
def test_examples_in_the_documentation_run(module: object) -> None:
    """
    What a docstring shows is what comes out.
    """
    found = doctest.testmod(module)  # type: ignore[arg-type]

    assert found.attempted
    assert 0 == found.failed


def test_a_reservation_ends_by_itself() -> None:
    """
    A flag is one reviewer's until the time is up, and then anybody's.
    """
    now = [0.0]
    held = Reservations(60.0, clock=lambda: now[0])

    assert 1 == held.take_first([1, 2], "ada")
    assert 2 == held.take_first([1, 2], "bob")
    assert held.take_first([1, 2], "eve") is None
    assert {1: "ada", 2: "bob"} == held.holders()
    now[0] = 59.0
    assert 1 == held.take_first([1, 2], "ada")
    now[0] = 61.0
    assert {1: "ada"} == held.holders()
    assert 2 == held.take_first([1, 2], "eve")
    held.release("ada")
    assert 1 == held.take_first([1, 2], "bob")


def test_hours_count_what_happened_in_each(tmp_path: Path) -> None:
    """
    The last of them runs and is counted again; one that is over is not.
    """
    now = [100 * HOUR + 1800]
    two = [flag("r1"), flag("r2", "mean")]
    write(tmp_path, Entries(flags=two, summaries=[summary("r1", "max")]), at=now[0])
    hours = Hours(PageReader(tmp_path), clock=lambda: now[0])

    last = hours.last()
    assert 24 == len(last)
    assert ({"max": 1, "mean": 1}, 1, 1) == (
        last[-1].n_flags,
        last[-1].requests.n_requests,
        last[-1].requests.n_flagged,
    )
    assert 0 == sum(hour.total for hour in last[:-1])
    write(tmp_path, Entries(flags=[flag("r3")]), at=now[0])
    assert 3 == hours.last()[-1].total
    now[0] += 2 * HOUR
    assert 3 == hours.last()[-3].total
    # Over is over: this would be a clock that was set back.
    write(tmp_path, Entries(flags=[flag("r4")]), at=now[0] - 2 * HOUR)
    assert 3 == hours.last()[-3].total


def detail(scores: dict[str, list[float]], digest: str) -> RequestDetail:
    """A request that every detector of *scores* flagged."""
    return RequestDetail(
        engine="engine",
        request_id="r",
        summary=None,
        flags=tuple(
            FlagRow(
                flag_id=i,
                request_id="r",
                detector=name,
                score=9.0,
                threshold=2.0,
                position=1,
                bundle_digest=digest,
                model="m",
                flagged_at=0.0,
                verdict="",
                adapter="",
            )
            for i, name in enumerate(scores, start=1)
        ),
        scores={n: np.array(s, dtype="<f4").tobytes() for n, s in scores.items()},
        token_ids=np.array([7, 8, 9, 10, 11], dtype="<i4").tobytes(),
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedSet:
    with place_with_bundle() as where:
        return LoadedSet.read(where.folder / "calibrated")


def test_missing_is_what_no_lane_has(loaded: LoadedSet) -> None:
    """
    A run of tokens without any score is one range; a lane that is shorter is filled.
    """
    nan = float("nan")
    heat = heat_map(
        detail(
            {"max": [nan, 3, nan, nan, nan], "ema": [nan, 1, nan, 4]}, loaded.digest
        ),
        [loaded],
        None,
    )

    assert ((0, 0), (2, 2), (4, 4)) == heat.missing
    assert 3 == heat.n_missing
    assert [1, 1] == [lane.n_above for lane in heat.lanes]
    rows = heat.rows(3, 10)
    assert [(3, 10), (4, 11)] == [(row.position, row.token_id) for row in rows]


def test_the_boundary_is_that_of_the_set_that_flagged(loaded: LoadedSet) -> None:
    """
    It runs to the request's end, in the score's units; of another set there is none.
    """
    scores = {"ema": [0.0] * 5}
    (lane,) = heat_map(detail(scores, loaded.digest), [loaded], None).lanes
    (unknown,) = heat_map(detail(scores, "f" * 64), [loaded], None).lanes
    calibration = loaded.bundle.calibration
    levels = calibration.centre + calibration.scale * calibration.running_level

    ((last, level),) = lane.boundary
    assert 4 == last
    assert levels[0, 1] == pytest.approx(level)
    assert () == unknown.boundary


def test_neighbours_are_the_nearest_benign_requests(loaded: LoadedSet) -> None:
    """
    By their margins: as many are as high as the calibration's ranks say.
    """
    calibration = loaded.bundle.calibration
    start, stop = calibration.reference_offsets[:2].tolist()
    peaks = calibration.reference[start:stop, 0]
    margins = (peaks - calibration.final_level[0, 0]) * calibration.scale[0, 0]
    middle = float(np.sort(margins)[len(margins) // 2])
    (view, other) = detector_views(
        SummaryRow(
            request_row=1,
            engine="engine",
            request_id="r",
            verdict="scanned",
            n_prompt_tokens=2,
            n_tokens_scored=5,
            n_tokens_shadowed=0,
            n_tokens_lost={},
            statistics={"mean": None, "max": 1.0},
            margins={"mean": None, "max": middle},
            flagged_by=(),
            p_value=None,
            is_discovery=False,
            abstention=None,
            bundle_digest=loaded.digest,
            model="m",
            adapter="",
            finished_at=0.0,
        ),
        loaded,
    )

    assert ("max", "mean") == (view.detector, other.detector)
    assert len(peaks) == view.n_benign
    assert int((margins >= middle).sum()) == view.n_higher
    assert middle in view.neighbours
    assert other.n_higher is None


def test_tokens_have_a_text_each(tmp_path: Path) -> None:
    """
    Of an id that is unknown, something is shown; a file that is none is refused.
    """
    texts = ShownTexts.load(TOKENIZER.parent)

    assert ["?", "[1000000]"] == list(texts.texts((-1, 0, 10**6, 5)))[::2]
    assert "" not in texts.texts((-1, 0, 5, 10**6))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"web\.tokenizer"):
        ShownTexts.load(tmp_path)
