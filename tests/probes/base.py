"""What all builders share: widths, places, numbers and a model's identity."""

import numpy as np

from probes import ModelIdentity
from probes.arrays import Float32

D_MODEL = 12
HOOK_POINT = "blocks.1.hook_resid_post"
LATER_HOOK_POINT = "blocks.10.hook_resid_post"


def floats(*shape: int, seed: int = 0) -> Float32:
    """Normal numbers of *shape*, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def identity(**changes: str | int) -> ModelIdentity:
    """The identity of a model that does not exist."""
    fields: dict[str, str | int] = {
        "model": "tiny",
        "config_sha256": "c" * 64,
        "weights_sha256": "a" * 64,
        "tokenizer_sha256": "7" * 64,
        "d_model": D_MODEL,
        "n_layers": 11,
        "dtype": "float32",
    }
    return ModelIdentity(**(fields | changes))  # type: ignore[arg-type]
