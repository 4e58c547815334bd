"""SAE features that no benign token has ever switched on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Aggregator
from probes.dataset import Dataset
from probes.fit.select import rows_of_requests
from probes.sae import SAEFeatureDetector
from probes.sae_formats.record import SAE
from probes.topk import TopKFeatureDetector

_MAX_VALUES = 1 << 25
"""Features held at once: 128 MiB of them, whatever d_sae is."""


def fit_novelty(
    dataset: Dataset,
    sae: SAE,
    *,
    name: str,
    benign: Sequence[int],
    aggregator: Aggregator,
    max_features: int | None = None,
    seed: int = 0,
) -> SAEFeatureDetector | TopKFeatureDetector:
    """
    Watch the features that are off on every token of *benign* requests.

    Evidence is how many of them a token switches on.

    Args:
        dataset: Has activations where *sae* reads.

        sae: Any that reads one hook point.

        name: Of the detector.

        benign: Indices of requests that are as they should be.

        aggregator: Of the detector.

        max_features: At most this many, drawn at random: each is a column.

        seed: Of that draw.

    Raises:
        ValueError: No benign token, or none of the features is off on all of them.
    """
    is_new = ~_ever_on(dataset, sae, name, benign, aggregator)
    features = np.flatnonzero(is_new)
    if not len(features):
        raise ValueError(
            f"detector {name!r}: benign: expected features that no benign token "
            f"switches on, got none of {sae.d_sae}"
        )
    if max_features is not None and len(features) > max_features:
        rng = np.random.default_rng(seed)
        features = np.sort(rng.choice(features, max_features, replace=False))
    family = SAEFeatureDetector if sae.is_exact_on_subset else TopKFeatureDetector
    return family.from_sae(
        sae, name=name, features=features.tolist(), rule="count", aggregator=aggregator
    )


def _ever_on(
    dataset: Dataset,
    sae: SAE,
    name: str,
    benign: Sequence[int],
    aggregator: Aggregator,
) -> NDArray[np.bool_]:
    """Which features some benign token that counts switches on, (d_sae,)."""
    rows = rows_of_requests(dataset, benign, aggregator.tokens)
    if not len(rows):
        raise ValueError(f"detector {name!r}: expected benign tokens, got none")
    activations = dataset.activations[sae.hook_point]
    ever_on = np.zeros(sae.d_sae, dtype=np.bool_)
    n_at_once = max(1, _MAX_VALUES // sae.d_sae)
    for start in range(0, len(rows), n_at_once):
        features = sae.encode(activations[rows[start : start + n_at_once]])
        ever_on |= (features != 0).any(axis=0)
    return ever_on
