# A probe can read the words of the trigger instead of what they do to the model. Where
# the words are taken out of the prompt and it still separates, it has read something
# else; where it then falls to chance, it may have been a slow search for a string.
"""What is left of a detector once the trigger text is taken out of the prompts."""

from dataclasses import dataclass

import numpy as np

from probes.bundle import Bundle
from probes.dataset import Dataset
from probes.fit.evaluate import auroc
from probes.fit.report.scored import Scored, Share, column_names, score_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedDrop:
    """
    One detector (or the set) on the same requests with and without the trigger.

    Attributes:
        detector: Its name, or `ALL_DETECTORS`.

        kind: Which requests.

        n_changed: Those whose prompt is another one without the trigger.

        auroc: Against benign requests, as they were.

        auroc_masked: Without the trigger, benign ones too where it was in them.

        flagged: As they were.

        flagged_masked: Without the trigger.
    """

    detector: str
    kind: str
    n_changed: int
    auroc: float
    auroc_masked: float
    flagged: Share
    flagged_masked: Share


def masked_drops(
    bundle: Bundle, dataset: Dataset, scored: Scored, masked: Dataset, label: str
) -> list[MaskedDrop]:
    """
    Compare requests that have an answer in both, by their id.

    Raises:
        ValueError: The two share no request, or no benign one.
    """
    again = score_requests(bundle, masked, label, scored.benign)
    rows = {
        masked.requests[index].request_id: row
        for row, index in enumerate(again.indices.tolist())
    }
    pairs = [
        (row, rows[request_id])
        for row, index in enumerate(scored.indices.tolist())
        if (request_id := dataset.requests[index].request_id) in rows
    ]
    both = [(a, b) for a, b in pairs if scored.is_answered[a] and again.is_answered[b]]
    if not both:
        raise ValueError(
            f"{masked.path}: expected requests of {dataset.path} without their "
            f"trigger text, with the same ids; found none"
        )
    first, second = np.array(both, dtype=np.int64).T
    kinds = scored.kinds[first]
    if not (kinds == scored.benign).any():
        raise ValueError(
            f"{masked.path}: expected benign requests of {dataset.path} too, found none"
        )
    is_changed = np.array(
        [
            not np.array_equal(
                _prompt(dataset, int(scored.indices[a])),
                _prompt(masked, int(again.indices[b])),
            )
            for a, b in both
        ]
    )
    before, after = scored.margins[first], again.margins[second]
    is_benign = kinds == scored.benign
    return [
        MaskedDrop(
            detector=name,
            kind=kind,
            n_changed=int(is_changed[kinds == kind].sum()),
            auroc=auroc(before[kinds == kind, c], before[is_benign, c]),
            auroc_masked=auroc(after[kinds == kind, c], after[is_benign, c]),
            flagged=Share.counted(before[kinds == kind, c] > 0),
            flagged_masked=Share.counted(after[kinds == kind, c] > 0),
        )
        for c, name in enumerate(column_names(bundle))
        for kind in scored.other_kinds
        if (kinds == kind).any()
    ]


def _prompt(dataset: Dataset, index: int) -> np.ndarray:
    request = dataset.requests[index]
    return dataset.token_ids[dataset.rows_of(index)][: request.n_prompt_tokens]
