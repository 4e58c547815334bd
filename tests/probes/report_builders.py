"""A bundle and data sets to evaluate it on, small and seeded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.bundle import Bundle
from probes.dataset import Dataset, load_dataset
from probes.dataset_writer import DatasetWriter
from tests.probes.builders import (
    D_MODEL,
    HOOK_POINT,
    LATER_HOOK_POINT,
    floats,
    identity,
    write_sae,
)

RECIPE = f"""
name = "trial"
version = "3"
[calibration]
alpha = 0.1
budget = "learnt"
[[detector]]
name = "planted"
family = "logistic"
hook_point = "{HOOK_POINT}"
positive = {{ label = "behaviour", equals = "backdoor" }}
benign = {{ label = "behaviour", equals = "none" }}
aggregator = {{ name = "mean", tokens = "answer" }}
rounds = 1
[[detector]]
name = "odd"
family = "mahalanobis"
hook_point = "{HOOK_POINT}"
benign = {{ label = "behaviour", equals = "none" }}
[[detector]]
name = "features"
family = "sae"
hook_point = "{HOOK_POINT}"
benign = {{ label = "behaviour", equals = "none" }}
path = "sae"
model_name = "gpt2-small"
features = [4, 9]
"""
SAE_CONFIG: dict[str, object] = {
    "architecture": "standard",
    "d_in": D_MODEL,
    "d_sae": 30,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "metadata": {"hook_name": HOOK_POINT, "model_name": "gpt2-small"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A bundle, and the data sets it was made from and is evaluated on."""

    bundle: Bundle
    fit: Dataset
    calibration: Dataset
    heldout: Dataset
    masked: Dataset


def make_trial(folder: Path) -> Trial:
    """Fit, calibrate, and write requests that neither has seen."""
    from probes.fit.recipe import fit_bundle

    write_sae(folder / "sae", SAE_CONFIG)
    write_requests(folder / "fit", seed=1)
    write_requests(folder / "calibration", seed=2, n_requests=240)
    write_requests(folder / "heldout", seed=3, n_requests=240)
    write_requests(folder / "masked", seed=3, n_requests=200, is_masked=True)
    (folder / "recipe.toml").write_text(RECIPE)
    fit, calibration, heldout, masked = (
        load_dataset(folder / name)
        for name in ("fit", "calibration", "heldout", "masked")
    )
    return Trial(
        bundle=fit_bundle(folder / "recipe.toml", fit, calibration),
        fit=fit,
        calibration=calibration,
        heldout=heldout,
        masked=masked,
    )


def write_requests(
    path: Path,
    *,
    seed: int,
    n_requests: int = 120,
    is_masked: bool = False,
    shift: float = 0.0,
) -> None:
    """
    Requests of 8 to 19 tokens at two hook points; every third is a backdoor.

    Its answer moves along a direction at the first hook point, and at the other by
    nothing. Masked, it does not move, and its prompt is another one. With a *shift*,
    everything moves.
    """
    rng = np.random.default_rng(seed)
    direction = floats(D_MODEL, seed=99)
    direction /= np.linalg.norm(direction)
    points = [HOOK_POINT, LATER_HOOK_POINT]
    with DatasetWriter(path, identity(), points, D_MODEL) as writer:
        for index in range(n_requests):
            n_tokens, is_planted = int(rng.integers(8, 20)), index % 3 == 0
            both = rng.normal(size=(2, n_tokens, D_MODEL)).astype(np.float32) + shift
            token_ids = rng.integers(0, 1 << 20, n_tokens).astype(np.int32)
            if is_planted and not is_masked:
                both[0, 3:] += np.float32(3) * direction
            if is_planted and is_masked:
                token_ids[1] = 7
            writer.append(
                f"request-{seed}-{index}",
                dict(zip(points, both.astype(np.float32), strict=True)),
                token_ids,
                np.arange(n_tokens, dtype=np.int32),
                n_prompt_tokens=4,
                labels={"behaviour": "backdoor" if is_planted else "none"},
            )
