"""A report as one HTML file that needs nothing else."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from probes.fit.intervals import clopper_pearson
from probes.fit.report import Report
from probes.fit.report.examples import Example
from probes.fit.report.scored import ALL_DETECTORS, Share
from service.report.pictures import pictures

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHY = {
    "found": "flagged, as it should be",
    "missed": "not flagged, and should have been",
    "false": "flagged, and should not have been",
    "highest": "benign, not flagged: the highest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """
    One token of a heat map.

    Attributes:
        text: Of the token.

        title: Its position and score, for people.

        strength: Of the colour, in [0, 1].

        classes: Whether it was generated, and whether the detector counts it.
    """

    text: str
    title: str
    strength: float
    classes: str


def page(report: Report) -> str:
    """The page of *report*; the same report gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("service.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["interval"] = interval
    drawn = {name: Markup(svg) for name, svg in pictures(report).items()}
    return environment.get_template("report.html.jinja").render(
        report=report,
        pictures=drawn,
        verdict=verdict(report),
        all_detectors=ALL_DETECTORS,
        why=WHY,
        heat_maps=list(heat_maps(report)),
    )


def with_tokens(report: Report, tokenizer: "Tokenizer") -> Report:
    """*report* whose examples have the text of their tokens."""
    return replace(
        report,
        examples=tuple(
            replace(
                example,
                tokens=tuple(_text(tokenizer, token) for token in example.token_ids),
            )
            for example in report.examples
        ),
    )


def _text(tokenizer: "Tokenizer", token: int) -> str:
    """What *token* adds to a text: many tokenizers drop the space of a first one."""
    if token < 0:
        return "?"
    once, twice = (
        tokenizer.decode([token] * n, skip_special_tokens=False) for n in (1, 2)
    )
    return twice[len(once) :] if twice.startswith(once) else once


def load_tokenizer(folder: Path, sha256: str) -> "Tokenizer | None":
    """
    The tokenizer of a model's folder; None where it has none.

    Raises:
        ValueError: It is not the one whose digest is *sha256*.
    """
    from tokenizers import Tokenizer

    from probes.identity import file_sha256

    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    found = file_sha256(path)
    if sha256 and found != sha256:
        raise ValueError(f"{path}: sha256: expected {sha256}, found {found}")
    return Tokenizer.from_file(str(path))


def verdict(report: Report) -> tuple[str, str]:
    """
    Whether the promise was kept: a word for the colour, and a sentence.

    Broken where chance does not explain what was flagged, in all or in one length bin
    (at 5 % over all of them: Bonferroni); kept where the interval is below alpha.
    """
    promise = report.promise
    flagged = promise.flagged
    seen = (
        f"{flagged.n} of {flagged.of} benign requests flagged: "
        f"{percent(flagged.share)} (95 %: {interval(flagged)})"
    )
    if promise.alpha is None:
        return "none", f"{seen}. Thresholds were set by hand: nothing is promised."
    promised = f"promised at most {percent(promise.alpha)}"
    if flagged.low > promise.alpha:
        return "broken", f"The promise is broken. {seen}, {promised}."
    bins = [one for one in promise.by_length if one.flagged.of]
    for one in bins:
        n, of = one.flagged.n, one.flagged.of
        if clopper_pearson(n, of, 1 - 0.05 / len(bins))[0] > promise.alpha:
            where = f"{n} of {of} of {one.above + 1} to {one.up_to} tokens"
            return "broken", f"The promise is broken: {where}. {seen}, {promised}."
    if flagged.high <= promise.alpha:
        return "kept", f"The promise is kept. {seen}, {promised}."
    return "unclear", f"Nothing contradicts the promise. {seen}, {promised}."


def percent(share: float | None) -> str:
    """
    For people.

    >>> percent(0.00719), percent(1.0), percent(None)
    ('0.72 %', '100 %', '-')
    """
    return "-" if share is None else f"{100 * share:.3g} %"


def interval(share: Share) -> str:
    """The interval of *share*, for people."""
    return f"{percent(share.low)} to {percent(share.high)}"


def heat_maps(report: Report) -> Iterator[tuple[Example, list[list[Cell]]]]:
    """Each example with the cells of its lanes, coloured alike over all examples."""
    scales = _scales(report)
    for example in report.examples:
        texts = example.tokens or tuple(f"{token} " for token in example.token_ids)
        lanes = []
        for lane in example.lanes:
            low, high = scales[lane.detector]
            cells = []
            for place, (text, score) in enumerate(zip(texts, lane.scores, strict=True)):
                position = example.first_token + place
                strength, said, classes = 0.0, "not counted", ["off"]
                if score is not None:
                    strength = min(max((score - low) / (high - low), 0.0), 1.0)
                    said, classes = f"{score:.4g}", []
                if position >= example.n_prompt_tokens:
                    classes.append("answer")
                cells.append(
                    Cell(
                        text=text,
                        title=f"{position}: {said}",
                        strength=round(strength, 2),
                        classes=" ".join(classes),
                    )
                )
            lanes.append(cells)
        yield example, lanes


def _scales(report: Report) -> dict[str, tuple[float, float]]:
    """By detector, the scores without and with full colour."""
    scores: dict[str, list[float]] = defaultdict(list)
    for example in report.examples:
        for lane in example.lanes:
            scores[lane.detector] += [s for s in lane.scores if s is not None]
    scales = {}
    for example in report.examples:
        for lane in example.lanes:
            found = np.array(scores[lane.detector] or [0.0])
            low, high = np.quantile(found, [0.5, 0.995])
            scales[lane.detector] = (float(low), float(max(high, low + 1e-9)))
    return scales
