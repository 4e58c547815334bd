# ruff: noqa: E402 - what evaluates is imported once it is known to be there.
"""The command evaluate, and the page that it writes."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.probes.builders import require_sklearn

require_sklearn()
for module in ("matplotlib", "jinja2", "tokenizers"):
    if os.environ.get("CI") != "true":
        pytest.importorskip(module, reason="pip install 'innerwatch[report]'")

from probes.bundle import save_bundle
from probes.fit.report import Report, build_report
from service.report.page import load_tokenizer, page, verdict, with_tokens
from tests.probes.report_builders import Trial, make_trial
from tests.service.builders import assert_refused, innerwatch, json_of

_VOID = {"meta", "br", "link"}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """One bundle for all tests here, saved beside its data sets."""
    found = make_trial(tmp_path_factory.mktemp("trial"))
    save_bundle(found.fit.path.parent / "bundle", found.bundle)
    return found


@pytest.fixture(scope="module")
def report(trial: Trial) -> Report:
    """With everything that can be given."""
    return build_report(
        trial.bundle,
        trial.heldout,
        label="behaviour",
        benign="none",
        masked=trial.masked,
        reference=trial.fit,
    )


class Tags(HTMLParser):
    """The tags of a page, checked to be closed in order, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.references += [
            value or ""
            for key, value in attrs
            if key in {"src", "href", "xlink:href", "action", "data"}
        ]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def svgs(text: str) -> Iterator[str]:
    """The pictures of a page."""
    yield from re.findall(r"<svg.*?</svg>", text, re.DOTALL)


def evaluate(trial: Trial, out: Path, *more: str) -> list[str]:
    """Arguments of ``evaluate``."""
    folder = trial.fit.path.parent
    return [
        *("evaluate", "--bundle", str(folder / "bundle")),
        *("--data", str(folder / "heldout"), "--out", str(out)),
        *(more if "--benign" in more else ("--benign", "behaviour=none", *more)),
    ]


def test_the_page_needs_nothing_else(report: Report) -> None:
    """
    It is well formed, refers to nothing outside itself, and runs nothing.
    """
    text = page(report)

    tags = Tags(text)
    assert [] == tags.open
    assert all(reference.startswith("#") for reference in tags.references)
    assert not {"script", "iframe", "link", "img"} & tags.seen
    assert not re.search(r"url\((?!#)|@import", text)
    assert 7 == len([ElementTree.fromstring(svg) for svg in svgs(text)])


def test_the_page_shows_the_figures(report: Report) -> None:
    """
    What stands in the JSON stands on the page.
    """
    words = " ".join(Tags(page(report)).words)

    assert verdict(report)[1] in words
    assert report.bundle["digest"] in words
    for separation in report.separations:
        assert f"{separation.auroc:.4f}" in words
        assert separation.detector in words
    for example in report.examples:
        assert example.request_id in words


def test_the_same_report_is_the_same_page(report: Report) -> None:
    """
    To the byte: no date, no random identifier.
    """
    assert page(report) == page(report)


def test_a_name_is_never_markup(report: Report) -> None:
    """
    Labels, ids and tokens from a data set are text, on the page and in its pictures.
    """
    evil = "_<script>alert(1)</script>$\\frac{&\"'"
    hostile = replace(
        report,
        label=evil,
        model=evil,
        dataset=report.dataset | {"path": evil},
        abstained=tuple(replace(one, kind=evil) for one in report.abstained),
        separations=tuple(replace(one, kind=evil) for one in report.separations),
        layers=tuple(replace(one, kind=evil) for one in report.layers),
        masked=tuple(replace(one, kind=evil) for one in report.masked),
        histograms=tuple(
            replace(one, counts=dict.fromkeys((evil,), next(iter(one.counts.values()))))
            for one in report.histograms
        ),
        examples=tuple(
            replace(
                one, kind=evil, request_id=evil, tokens=(evil,) * len(one.token_ids)
            )
            for one in report.examples
        ),
    )

    text = page(hostile)

    tags = Tags(text)
    assert "script" not in tags.seen
    assert evil in tags.words
    for svg in svgs(text):
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("n_flagged", "expected"), [(0, "kept"), (12, "unclear"), (60, "broken")]
)
def test_the_verdict_is_the_intervals(
    report: Report, n_flagged: int, expected: str
) -> None:
    """
    Broken is said only where chance does not explain it, and kept only where it is so.
    """
    from probes.fit.report.scored import Share

    flagged = Share.of_counts(n_flagged, 160)

    found = verdict(replace(report, promise=replace(report.promise, flagged=flagged)))

    assert expected == found[0]


def test_a_bin_can_break_the_promise(report: Report) -> None:
    """
    What is flagged too often at one length is not made good by the others.
    """
    from probes.fit.report.promise import LengthBin
    from probes.fit.report.scored import Share

    bins = [(0, 64, 0, 450), (64, 4096, 20, 50)]
    promise = replace(
        report.promise,
        alpha=0.1,
        flagged=Share.of_counts(20, 500),
        by_length=tuple(
            LengthBin(above=above, up_to=up_to, flagged=Share.of_counts(n, of))
            for above, up_to, n, of in bins
        ),
    )

    word, sentence = verdict(replace(report, promise=promise))

    assert "broken" == word
    assert "20 of 50 of 65 to 4096 tokens" in sentence


def test_few_requests_keep_no_promise(report: Report) -> None:
    """
    Nothing flagged of three, or of none, says little, and so does the verdict.
    """
    from probes.fit.report.scored import Share

    for of in (0, 3):
        promise = replace(report.promise, flagged=Share.of_counts(0, of), by_length=())
        assert "unclear" == verdict(replace(report, promise=promise))[0]


def test_one_benign_request_is_enough_for_a_page(trial: Trial, tmp_path: Path) -> None:
    """
    Where there is nothing to correlate, that picture is left out.
    """
    from probes.dataset import load_dataset
    from tests.probes.report_builders import write_requests

    write_requests(tmp_path / "few", seed=9, n_requests=2)
    report = build_report(
        trial.bundle, load_dataset(tmp_path / "few"), label="behaviour", benign="none"
    )

    assert Tags(page(report)).open == []
    assert (report.separations[0].auroc_low, report.separations[0].auroc_high) != (1, 1)


def test_another_json_file_is_left_alone(trial: Trial, tmp_path: Path) -> None:
    """
    Only a report's figures are written over.
    """
    (tmp_path / "dataset.json").write_text("{}")

    assert_refused(innerwatch(*evaluate(trial, tmp_path / "dataset.html")), "--out")

    assert "{}" == (tmp_path / "dataset.json").read_text()


def test_evaluate_writes_page_and_figures(trial: Trial, tmp_path: Path) -> None:
    """
    One HTML file, and beside it the same figures as JSON.
    """
    out = tmp_path / "new" / "report.html"
    folder = trial.fit.path.parent

    result = innerwatch(
        *evaluate(trial, out, "--json"),
        *("--masked", str(folder / "masked"), "--reference", str(folder / "fit")),
    )

    assert json_of(result) == {
        "report": str(out),
        "figures": str(out.with_suffix(".json")),
    }
    figures = json.loads(out.with_suffix(".json").read_text())
    assert 1 == figures["schema"]
    assert 4 == len(figures["separations"])
    assert Tags(out.read_text()).open == []


def test_text_can_be_left_out(trial: Trial, tmp_path: Path) -> None:
    """
    Without examples no token of a request is in either file.
    """
    out = tmp_path / "report.html"

    innerwatch(*evaluate(trial, out, "--no-text"))

    figures = json.loads(out.with_suffix(".json").read_text())
    assert [] == figures["examples"]
    assert trial.heldout.requests[0].request_id.split("-")[0] + "-3-" not in (
        out.read_text()
    )


def tokenizer_of(folder: Path) -> None:
    """Write a tokenizer of one word."""
    from tokenizers import Tokenizer, models

    words = models.WordLevel({"hello": 0, "?": 1}, unk_token="?")
    Tokenizer(words).save(str(folder / "tokenizer.json"))


def test_tokens_have_their_text(report: Report, tmp_path: Path) -> None:
    """
    With the model's tokenizer each token is shown as what it says.
    """
    tokenizer_of(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "")
    assert tokenizer is not None
    example = replace(
        report.examples[0],
        token_ids=(0, 1),
        lanes=tuple(replace(x, scores=(0.5, None)) for x in report.examples[0].lanes),
    )

    text = page(with_tokens(replace(report, examples=(example,)), tokenizer))

    assert "> hello</span>" in text
    assert "1: not counted" in text


def test_evaluate_refuses(trial: Trial, tmp_path: Path) -> None:
    """
    What is wrong is one line that names it, and nothing is written.
    """
    out, folder = tmp_path / "report.html", trial.fit.path.parent
    tokenizer_of(tmp_path)
    for more, words in (
        (("--benign", "behaviour"), ("--benign", "LABEL=VALUE")),
        (("--benign", "behaviour=good"), ("benign:", "'good'")),
        (("--benign", "kind=none"), ("label:", "['behaviour']")),
        (("--out", str(tmp_path / "x.json")), ("--out", "report.html")),
        (("--masked", str(tmp_path)), ("dataset.json",)),
        (("--data", str(folder / "calibration")), ("calibrated on",)),
        (("--tokenizer", str(tmp_path / "none")), ("--tokenizer", "tokenizer.json")),
    ):
        assert_refused(innerwatch(*evaluate(trial, out, *more)), *words)
        assert not out.exists()
    with pytest.raises(ValueError, match=r"tokenizer\.json: sha256: expected 00"):
        load_tokenizer(tmp_path, "00")
