# ruff: noqa: E402 - the fits are imported once scikit-learn is known to be there.
"""What a report says of a bundle on a data set."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.probes.builders import HOOK_POINT, LATER_HOOK_POINT, require_sklearn

require_sklearn()

from probes.dataset import load_dataset
from probes.errors import ArtifactError
from probes.fit.evaluate import request_statistics
from probes.fit.report import Report, build_report
from probes.fit.report.scored import ALL_DETECTORS
from tests.probes.report_builders import Trial, make_trial, write_requests

NAMES = ["planted", "odd", "features"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """One bundle for all tests here."""
    return make_trial(tmp_path_factory.mktemp("trial"))


def report_of(trial: Trial, **changes: Any) -> Report:
    """The report on what the bundle has not seen."""
    given = {"label": "behaviour", "benign": "none"} | changes
    return build_report(trial.bundle, given.pop("dataset", trial.heldout), **given)


@pytest.fixture(scope="module")
def report(trial: Trial) -> Report:
    """With everything that can be given."""
    return report_of(trial, masked=trial.masked, reference=trial.fit)


def test_the_promise_is_counted_by_length(trial: Trial, report: Report) -> None:
    """
    Benign requests of all bins are all of them, and so are those flagged.
    """
    promise = report.promise

    assert 160 == promise.flagged.of
    assert 160 == sum(one.flagged.of for one in promise.by_length)
    assert promise.flagged.n == sum(one.flagged.n for one in promise.by_length)
    assert promise.by_length[-1].up_to == trial.bundle.calibration.longest[-1]
    assert 0.1 == promise.alpha
    counts = [p.at_or_below.n for p in promise.p_values]
    assert sorted(counts) == counts
    assert promise.flagged.n == next(
        p.at_or_below.n for p in promise.p_values if p.level == 0.1
    )


def test_separation_is_of_what_the_boundary_is_held_against(report: Report) -> None:
    """
    Each detector and the set are told for the planted kind, found where it is.
    """
    found = {one.detector: one for one in report.separations}

    assert [ALL_DETECTORS, *NAMES] == [one.detector for one in report.separations]
    assert found["planted"].auroc > 0.99
    assert found["planted"].flagged.share == pytest.approx(1, abs=0.05)
    assert found["features"].auroc < found["planted"].auroc
    for one in found.values():
        assert one.auroc_low <= one.auroc <= one.auroc_high
        assert [0.01, 0.001] == [r.false_positive_rate for r in one.recall]
        assert one.recall[1].found is None, "160 requests cannot tell one in 1000"


def test_one_bin_orders_requests_as_their_statistics(trial: Trial) -> None:
    """
    Without lengths, a margin is the statistic moved and scaled: the same AUROC.
    """
    from probes.calibration import fixed_thresholds
    from probes.fit.evaluate import auroc

    by_hand = fixed_thresholds({"planted": 0.0, "odd": 20.0, "features": 3.0})
    report = build_report(
        replace(trial.bundle, calibration=by_hand),
        trial.heldout,
        label="behaviour",
        benign="none",
    )

    for detector, separation in zip(
        trial.bundle.detectors, report.separations[1:], strict=True
    ):
        statistics = request_statistics(trial.heldout, detector)
        is_planted = np.arange(240) % 3 == 0
        expected = auroc(statistics[is_planted], statistics[~is_planted])
        assert expected == pytest.approx(separation.auroc)
    assert report.promise.alpha is None
    assert () == report.promise.p_values
    assert () == report.score_shifts


def test_layers_are_told_apart(report: Report) -> None:
    """
    The hook point at which something moves is seen, and the other is chance.
    """
    found = {one.hook_point: one for one in report.layers}

    assert found[HOOK_POINT].auroc > 0.99
    assert 0.35 < found[LATER_HOOK_POINT].auroc < 0.65
    assert [1, 10] == [one.layer for one in report.layers]


def test_a_detector_agrees_with_itself(report: Report) -> None:
    """
    Correlations are symmetric, within -1 and 1, and 1 of each with itself.
    """
    for correlation in report.correlations:
        matrix = np.array(correlation.matrix, dtype=np.float64)
        np.testing.assert_allclose(matrix, matrix.T)
        np.testing.assert_allclose(np.diag(matrix), 1)
        assert np.abs(matrix).max() <= 1


def test_masked_requests_are_compared_with_themselves(report: Report) -> None:
    """
    Without the trigger nothing is planted, and the drop is what the detector had.
    """
    found = {one.detector: one for one in report.masked}

    assert (67, 67) == (found["planted"].flagged.of, found["planted"].n_changed)
    assert found["planted"].auroc > 0.99
    assert found["planted"].auroc_masked < 0.65
    assert (found["planted"].flagged_masked.share or 0) < 0.2


def test_shifts_are_seen(trial: Trial, tmp_path: Path) -> None:
    """
    Benign requests like the calibration's have not shifted, and moved ones have.
    """
    write_requests(tmp_path / "moved", seed=4, shift=1.5)
    moved = report_of(
        trial, dataset=load_dataset(tmp_path / "moved"), reference=trial.fit
    )
    same = report_of(trial, reference=trial.fit)

    before = {one.detector: one for one in same.score_shifts}
    after = {one.detector: one for one in moved.score_shifts}
    assert before["odd"].psi < 0.35 < 2 < after["odd"].psi
    assert before["odd"].ks_p_value > 0.001 > 1e-10 > after["odd"].ks_p_value
    assert [4, 9] == [one.feature for one in same.firing_shifts]
    rates = [
        (a.psi, b.psi)
        for a, b in zip(same.firing_shifts, moved.firing_shifts, strict=True)
    ]
    assert all(here < 0.01 for here, _ in rates)
    assert max(there for _, there in rates) > 0.05


def test_firing_rates_are_those_of_the_whole_encoder(
    trial: Trial, report: Report
) -> None:
    """
    A feature's share of tokens is what encoding every benign token gives.
    """
    from probes.sae_formats import load_sae

    sae = load_sae(
        trial.fit.path.parent / "sae",
        hook_points=(HOOK_POINT,),
        model_name="gpt2-small",
    )
    rows = np.concatenate(
        [
            np.r_[trial.heldout.rows_of(i)]
            for i, r in enumerate(trial.heldout.requests)
            if r.labels["behaviour"] == "none"
        ]
    )
    encoded = sae.encode(trial.heldout.activations[HOOK_POINT][rows])
    expected = (encoded[:, [4, 9]] != 0).sum(axis=0)

    assert expected.tolist() == [one.here.n for one in report.firing_shifts]
    assert {len(rows)} == {one.here.of for one in report.firing_shifts}


def test_examples_say_why_they_are_there(trial: Trial, report: Report) -> None:
    """
    Found ones are flagged, missed ones are not, and tokens carry their scores.
    """
    for example in report.examples:
        is_flagged = any(lane.is_flagged for lane in example.lanes)
        assert is_flagged == (example.why in {"found", "false"})
        assert (example.kind == "none") == (example.why in {"false", "highest"})
        assert all(len(lane.scores) == len(example.token_ids) for lane in example.lanes)
    example = next(one for one in report.examples if one.why == "found")
    lane = next(one for one in example.lanes if one.detector == "planted")
    assert [None] * 3 == list(lane.scores[:3]), "before the prompt's last token"
    index = next(
        i
        for i, r in enumerate(trial.heldout.requests)
        if r.request_id == example.request_id
    )
    statistic = request_statistics(trial.heldout, trial.bundle.detectors[0], [index])
    counted = [score for score in lane.scores if score is not None]
    assert np.mean(counted) == pytest.approx(statistic[0], rel=1e-4)


def test_requests_without_an_answer_are_counted_apart(trial: Trial) -> None:
    """
    One that is longer than all of the calibration is in no rate.
    """
    calibration = trial.bundle.calibration
    short = replace(calibration, longest=np.arange(13 - calibration.n_bins, 13))
    report = build_report(
        replace(trial.bundle, calibration=short),
        trial.heldout,
        label="behaviour",
        benign="none",
    )

    lengths = np.array([r.n_rows for r in trial.heldout.requests])
    is_benign = np.arange(240) % 3 != 0
    benign, planted = report.abstained
    assert int((lengths[is_benign] > 12).sum()) == benign.too_long
    assert int((lengths[~is_benign] > 12).sum()) == planted.too_long
    assert benign.n_requests - benign.too_long == report.promise.flagged.of


def test_the_same_report_is_the_same_json(trial: Trial, report: Report) -> None:
    """
    Figures are finite JSON, and made anew they are the same.
    """
    text = json.dumps(report.to_json(), allow_nan=False)

    again = report_of(trial, masked=trial.masked, reference=trial.fit)
    assert text == json.dumps(again.to_json(), allow_nan=False)


def test_evaluation_refuses_what_it_cannot_tell(trial: Trial, tmp_path: Path) -> None:
    """
    A label that is not there, the calibration's own requests, another model's.
    """
    with pytest.raises(ValueError, match=r"label: expected one of \['behaviour'\]"):
        report_of(trial, label="kind")
    with pytest.raises(ValueError, match="benign: expected a value of 'behaviour'"):
        report_of(trial, benign="good")
    with pytest.raises(ValueError, match="that it was calibrated on"):
        report_of(trial, dataset=trial.calibration)
    with pytest.raises(ValueError, match="that it was fitted on"):
        report_of(trial, dataset=trial.fit)
    with pytest.raises(ValueError, match="without their trigger text"):
        report_of(trial, masked=trial.fit)
    other = replace(
        trial.heldout, identity=replace(trial.heldout.identity, weights_sha256="0" * 64)
    )
    with pytest.raises(ArtifactError, match=r"identity\.weights_sha256"):
        report_of(trial, dataset=other)
    elsewhere = replace(
        trial.heldout,
        activations={LATER_HOOK_POINT: trial.heldout.activations[LATER_HOOK_POINT]},
    )
    with pytest.raises(ValueError, match="hook_points: expected"):
        report_of(trial, dataset=elsewhere)
