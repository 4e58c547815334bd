"""Rules over a few features against the full encoder, on many tokens.

usage: python -m tests.bench.sae_rules [--tokens 1000000] [--d-model 64] [--d-sae 4096]
                                       [--watched 256]

For every kind of SAE and rule, random weights and random activations: on how many
tokens the rule on the watched rows holds where the rule on the full encoding does not,
or the other way round; and how much arithmetic a token takes.
"""

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.aggregate import Max
from probes.arrays import Float32, squared_norms
from probes.detector import Detector, score
from probes.rules import RULES
from probes.sae import SAEFeatureDetector
from probes.sae_formats.record import SAE
from probes.topk import TopKFeatureDetector

HOOK_POINT = "blocks.0.hook_resid_post"
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu"},
    "gated": {"activation": "gated"},
    "groupmax": {"activation": "groupmax"},
    "topk": {"activation": "topk"},
    "relu, rms": {"activation": "relu", "input_norm": "rms"},
    "topk, layer_norm": {
        "activation": "topk",
        "input_norm": "layer_norm",
        "norm_eps": 1e-5,
    },
}
CHUNK = 5_000
# Rules watch what is rare; of "all", two features have to be on at once.
LEVELS = {"weighted_sum": 0.0, "any": 2.0, "all": 0.25, "count": 2.0}


def main() -> None:
    """Print a line for each kind of SAE and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--watched", type=int, default=256)
    args = parser.parse_args()
    for kind, fields in KINDS.items():
        sae = random_sae(args.d_model, args.d_sae, **fields)
        for line in compare(sae, args.watched, args.tokens):
            print(f"{kind:18} {line}", flush=True)


def random_sae(d_model: int, d_sae: int, **fields: Any) -> SAE:
    """An SAE with unit rows and biases that keep most features off."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Float32:
        return rng.normal(size=shape).astype(np.float32)

    rows = normal(d_model, d_sae)
    rows /= np.linalg.norm(rows, axis=0)
    needs: dict[str, dict[str, Any]] = {
        "jumprelu": {"threshold": np.abs(normal(d_sae)) / 4},
        "gated": {
            "b_gate": -np.abs(normal(d_sae)) / 2,
            "r_mag": normal(d_sae) / 4,
            "b_mag": normal(d_sae) / 4,
        },
        "topk": {"k": max(1, d_sae // 64)},
        "groupmax": {"k": max(1, d_sae // 64)},
    }
    return SAE(
        W_enc=rows,
        b_enc=normal(d_sae) / np.float32(2) - np.float32(2),
        hook_points=(HOOK_POINT,),
        model_name="random",
        **fields,
        **needs.get(fields["activation"], {}),
    )


def compare(sae: SAE, n_watched: int, n_tokens: int) -> list[str]:
    """A line for each rule: its outcomes against the full encoder's."""
    rng = np.random.default_rng(1)
    watched = rng.choice(sae.d_sae, n_watched, replace=False).tolist()
    # Of many features hardly ever all are on: that rule watches two.
    detectors = {
        rule: watching(sae, watched[: 2 if rule == "all" else None], rule)
        for rule in RULES
    }
    wrong, held, encoded = (dict.fromkeys(RULES, 0) for _ in range(3))
    for start in range(0, n_tokens, CHUNK):
        n = min(CHUNK, n_tokens - start)
        x = rng.normal(size=(n, sae.d_model)).astype(np.float32)
        full = sae.encode(x)
        for rule, detector in detectors.items():
            found = score(detector, {HOOK_POINT: x})[:, 0] != 0
            expected = holds(rule, full[:, watched[: 2 if rule == "all" else None]])
            wrong[rule] += int((found != expected).sum())
            held[rule] += int(expected.sum())
            if isinstance(detector, TopKFeatureDetector):
                encoded[rule] += n_encoded(detector, x)
    return [
        f"{rule:13} {wrong[rule]} of {n_tokens} outcomes wrong, it holds on "
        f"{held[rule]}; " + work(detectors[rule], sae, encoded[rule] / n_tokens)
        for rule in RULES
    ]


def watching(sae: SAE, features: list[int], rule: str) -> Detector:
    """The detector of *features*, of the family that is exact for *sae*."""
    family = SAEFeatureDetector if sae.is_exact_on_subset else TopKFeatureDetector
    return family.from_sae(
        sae,
        name="watched",
        features=features,
        rule=rule,
        levels=[LEVELS[rule]] * len(features),
        aggregator=Max(),
    )


def holds(rule: str, features: Float32) -> NDArray[np.bool_]:
    """Whether the rule holds, (n_tokens,), from the full encoder's features."""
    is_on = features > np.float32(LEVELS[rule])
    judge = np.logical_and if rule == "all" else np.logical_or
    found: NDArray[np.bool_] = judge.reduce(is_on, axis=1)
    return found


def n_encoded(detector: TopKFeatureDetector, x: Float32) -> int:
    """How many tokens of *x* the whole encoder had to look at."""
    projection = detector.projections[0]
    columns = x @ projection.weight.T + projection.bias
    if projection.wants_norm:
        columns = np.hstack([columns, squared_norms(x)[:, None]])
    return int(detector.may_hold(columns, x).sum())


def work(detector: Detector, sae: SAE, share_encoded: float) -> str:
    """Multiplications a token against those of the full encoder."""
    n_full = sae.W_enc.size
    total = sum(p.weight.size for p in detector.projections) + share_encoded * n_full
    return f"{n_full / total:.0f} times less arithmetic than the encoder"


if __name__ == "__main__":
    main()
