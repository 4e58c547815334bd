"""Compares what the plugin sent with a Hugging Face model's own residual stream."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monitor.records import StepBatch

Rows = dict[str, dict[int, tuple[int, NDArray[np.float32], np.float32]]]
"""By request and position: token id, values, squared norm; as last sent."""


def rows_at(batches: list[StepBatch], hook_point: str) -> tuple[Rows, int]:
    """Return the rows at *hook_point* and how many came more than once."""
    rows: Rows = defaultdict(dict)
    n_repeated = 0
    for batch in batches:
        values = (batch.columns or batch.activations).get(hook_point)
        if values is None:
            continue
        norms = batch.squared_norms[hook_point]
        for index, request_id in enumerate(batch.request_ids):
            name = request_id.rsplit("-", 1)[0]
            start, end = batch.row_offsets[index : index + 2].tolist()
            for row in range(start, end):
                position = int(batch.first_positions[index]) + row - start
                n_repeated += position in rows[name]
                token = int(batch.token_ids[row])
                rows[name][position] = (token, values[row], norms[row])
    return rows, n_repeated


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """
    How the rows differ from the reference.

    *worst* is the largest difference relative to the row's largest value.
    """

    n_rows: int
    n_missing: int
    n_unasked: int
    n_wrong_token: int
    worst: float
    n_repeated: int = 0


def compare(
    rows: Rows,
    sequences: Mapping[str, list[int]],
    reference: Mapping[str, NDArray[np.float32]],
) -> Comparison:
    """
    Compare *rows* with *reference*, values of shape (n_tokens, width) a request.

    Every position of *sequences*, by request its token ids, has to be there once.
    """
    n_rows = n_missing = n_unasked = n_wrong_token = 0
    worst = 0.0
    for name, tokens in sequences.items():
        seen = rows.get(name, {})
        n_missing += len(set(range(len(tokens))) - seen.keys())
        n_unasked += len(seen.keys() - set(range(len(tokens))))
        for position, (token, values, _) in seen.items():
            if position >= len(tokens):
                continue
            n_rows += 1
            n_wrong_token += token != tokens[position]
            expected = reference[name][position]
            scale = float(np.abs(expected).max())
            worst = max(worst, float(np.abs(values - expected).max()) / scale)
    return Comparison(
        n_rows=n_rows,
        n_missing=n_missing,
        n_unasked=n_unasked,
        n_wrong_token=n_wrong_token,
        worst=worst,
    )


def reference_activations(
    model_path: Path, sequences: Mapping[str, list[int]], layer: int
) -> dict[str, NDArray[np.float32]]:
    """Return ``blocks.{layer}.hook_resid_post`` by request, (n_tokens, d_model)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    activations = {}
    with torch.inference_mode():
        for name, tokens in sequences.items():
            output = model(torch.tensor([tokens]), output_hidden_states=True)
            activations[name] = output.hidden_states[layer + 1][0].numpy()
    return activations
