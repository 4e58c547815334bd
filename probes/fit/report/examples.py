"""Requests to look at: the highest, the missed and the false, token by token."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import is_answer
from probes.arrays import Float32
from probes.bank import ProjectionBank
from probes.bundle import Bundle
from probes.dataset import Dataset
from probes.evidence import Scorer
from probes.fit.chunks import read_rows
from probes.fit.report.scored import Scored

_N_EACH = 3
_N_LANES = 3
MAX_TOKENS = 400
"""Of an example: the end of a longer one is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """
    One detector's scores of an example's tokens.

    Attributes:
        detector: Its name.

        margin: Above its boundary at the request's end, in the calibration's units.

        is_flagged: Whether that flags the request.

        scores: One a token; None of a token that it does not count.
    """

    detector: str
    margin: float
    is_flagged: bool
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """
    One request of the data set.

    Attributes:
        why: "found", "missed", "false" (a benign one, flagged) or "highest" (a benign
            one that was not).

        request_id: Of the data set.

        kind: Of the label.

        n_tokens: In all.

        first_token: Index in the request of the first that is shown.

        n_prompt_tokens: Positions below this are the prompt.

        token_ids: Of those shown.

        tokens: Their text; empty without a tokenizer.

        lanes: The detectors that stand highest, highest first.
    """

    why: str
    request_id: str
    kind: str
    n_tokens: int
    first_token: int
    n_prompt_tokens: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    lanes: tuple[Lane, ...]


def choose_examples(scored: Scored) -> list[tuple[str, int]]:
    """Why, and which row of *scored*; at most `_N_EACH` of each reason and kind."""
    chosen = []
    for kind in [*scored.other_kinds, scored.benign]:
        rows = np.flatnonzero(scored.of_kind(kind))
        margins = scored.margins[rows, 0]
        highest_first = rows[np.argsort(-margins, kind="stable")].tolist()
        flagged = [row for row in highest_first if scored.margins[row, 0] > 0]
        others = [row for row in highest_first if scored.margins[row, 0] <= 0]
        if kind == scored.benign:
            chosen += [("false", row) for row in flagged[:_N_EACH]]
            chosen += [("highest", row) for row in others[: 1 if flagged else _N_EACH]]
        else:
            chosen += [("found", row) for row in flagged[:_N_EACH]]
            chosen += [("missed", row) for row in others[-_N_EACH:]]
    return chosen


def examples(bundle: Bundle, dataset: Dataset, scored: Scored) -> list[Example]:
    """The chosen ones, with the scores of their tokens and no text yet."""
    bank = ProjectionBank.compile(bundle.detectors)
    scorer = Scorer(bank, bundle.detectors)
    return [
        _example(bundle, dataset, scored, why, row, bank, scorer)
        for why, row in choose_examples(scored)
    ]


def _example(
    bundle: Bundle,
    dataset: Dataset,
    scored: Scored,
    why: str,
    row: int,
    bank: ProjectionBank,
    scorer: Scorer,
) -> Example:
    index = int(scored.indices[row])
    request, rows = dataset.requests[index], dataset.rows_of(index)
    first = max(request.n_rows - MAX_TOKENS, 0)
    shown = slice(rows.start + first, rows.stop)
    whole = {h: read_rows(dataset.activations[h], shown) for h in bank.hook_points}
    columns, norms = bank.project(whole)
    scores = scorer.evidence(columns, norms, whole).scores
    positions = dataset.positions[shown].astype(np.int64)
    n_prompt = np.full(len(positions), request.n_prompt_tokens)
    answers = is_answer(positions, n_prompt)
    margins = scored.margins[row, 1:]
    highest = np.argsort(-margins, kind="stable")[:_N_LANES].tolist()
    return Example(
        why=why,
        request_id=request.request_id,
        kind=str(scored.kinds[row]),
        n_tokens=request.n_rows,
        first_token=first,
        n_prompt_tokens=request.n_prompt_tokens,
        token_ids=tuple(dataset.token_ids[shown].tolist()),
        tokens=(),
        lanes=tuple(
            Lane(
                detector=bundle.detectors[d].name,
                margin=float(margins[d]),
                is_flagged=bool(scored.judged.is_flagged[row, d]),
                scores=_counted(
                    scores[d],
                    answers
                    if bundle.detectors[d].aggregator.tokens == "answer"
                    else np.ones_like(answers),
                ),
            )
            for d in highest
        ),
    )


def _counted(
    scores: Float32, is_counted: NDArray[np.bool_]
) -> tuple[float | None, ...]:
    return tuple(
        float(score) if counted else None
        for score, counted in zip(scores.tolist(), is_counted.tolist(), strict=True)
    )
