"""Rules over a few features against the full encoder, on many tokens.

usage: python -m tests.bench.sae_rules [--tokens 1000000] [--d-model 64] [--d-sae 4096]
           [--watched 256] [--formats | --checkpoint PATH --data DATASET]

For every kind of SAE and rule, random weights and random activations: on how many
tokens the rule on the watched rows holds where the rule on the full encoding does not,
or the other way round; and how much arithmetic a token takes. With --formats, of a
checkpoint of every format, as the contract tests write them (16 by 64, random). With
--checkpoint, of that one, on the tokens of a data set, over again until there are
enough, each with noise of a hundredth of the activations' spread.

The two sum in another order, so that a feature within 1e-5 of a level may fall on
either side of it: wrong outcomes on such tokens are said apart.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from probes import ArtifactError, load_dataset
from probes.aggregate import Max
from probes.arrays import Float32, squared_norms
from probes.detector import Detector, score
from probes.rules import RULES
from probes.sae import SAEFeatureDetector
from probes.sae_formats import SAE, load_sae
from probes.topk import TopKFeatureDetector
from tests.contract.sae_files import FILES
from tests.contract.sae_folders import FOLDERS
from tests.contract.sae_saelens import SAELENS

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
CASES = SAELENS | FOLDERS | FILES

Draw = Callable[[np.random.Generator, int, int], Float32]


def main() -> None:
    """Print a line for each kind of SAE and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--watched", type=int, default=256)
    parser.add_argument("--formats", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    for name, sae, draw in chosen(args):
        n_watched = min(args.watched, sae.d_sae // 4)
        for line in compare(sae, n_watched, args.tokens, draw):
            print(f"{name:24} {line}", flush=True)


def chosen(args: argparse.Namespace) -> Iterator[tuple[str, SAE, Draw]]:
    """Name, SAE and where its inputs come from, of what was asked for."""
    if args.checkpoint:
        dataset = load_dataset(args.data)
        (hook_point,) = dataset.activations
        sae = look(args.checkpoint, hook_point, dataset.identity.model)
        yield args.checkpoint.name, sae, repeated(dataset.activations[hook_point])
    elif args.formats:
        with tempfile.TemporaryDirectory() as folder:
            for name, case in CASES.items():
                path, _ = case.write(Path(folder) / name)
                sae = load_sae(path, **case.facts)
                # Detectors read the residual stream only; the formula is the same.
                places = range(len(sae.hook_points))
                hook_points = tuple(f"blocks.{i}.hook_resid_post" for i in places)
                yield name, replace(sae, hook_points=hook_points), normal
    else:
        for name, fields in KINDS.items():
            yield name, random_sae(args.d_model, args.d_sae, **fields), normal


def look(path: Path, hook_point: str, model_name: str) -> SAE:
    """The checkpoint at *path*; where it does not say so, it is of these."""
    facts: dict[str, Any] = {}
    while True:
        try:
            return load_sae(path, **facts)
        except ArtifactError as error:
            told = {"hook_point": hook_point, "model_name": model_name}
            missing = next((k for k in told if k in str(error)), None)
            if missing is None or missing in facts:
                raise
            facts[missing] = told[missing]


def normal(rng: np.random.Generator, n: int, d_in: int) -> Float32:
    """Normal activations."""
    return rng.normal(size=(n, d_in)).astype(np.float32)


def repeated(rows: Float32) -> Draw:
    """Rows of a data set, with a little noise."""
    noise = np.asarray(rows).std(axis=0) / np.float32(100)

    def draw(rng: np.random.Generator, n: int, d_in: int) -> Float32:
        some = rows[np.sort(rng.integers(0, len(rows), n))]
        noisy: Float32 = some + noise * rng.normal(size=(n, d_in)).astype(np.float32)
        return noisy

    return draw


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


def compare(
    sae: SAE, n_watched: int, n_tokens: int, draw: Draw | None = None
) -> list[str]:
    """A line for each rule: its outcomes against the full encoder's."""
    draw = draw or normal
    rng = np.random.default_rng(1)
    watched = rng.choice(sae.d_sae, n_watched, replace=False).tolist()
    sample = sae.encode(draw(rng, CHUNK, sae.W_enc.shape[0]))
    rules = [Watched.of(rule, sae, watched, sample) for rule in RULES]
    for start in range(0, n_tokens, CHUNK):
        n = min(CHUNK, n_tokens - start)
        x = draw(rng, n, sae.W_enc.shape[0])
        parts = np.split(x, len(sae.hook_points), axis=1)
        activations = {
            h: np.ascontiguousarray(part)
            for h, part in zip(sae.hook_points, parts, strict=True)
        }
        full = sae.encode(x)
        for one in rules:
            one.take_in(full, activations)
    return [
        f"{one.rule:13} {one.n_wrong} of {n_tokens} outcomes wrong "
        f"({one.n_rounded} of them by rounding), it holds on {one.n_held}; "
        + work(one.detector, sae, one.n_encoded / n_tokens)
        for one in rules
    ]


@dataclass
class Watched:
    """A rule over a few features, and how often it was wrong."""

    rule: str
    features: list[int]
    level: float
    detector: Detector
    n_wrong: int = 0
    n_rounded: int = 0
    n_held: int = 0
    n_encoded: int = 0

    @classmethod
    def of(cls, rule: str, sae: SAE, watched: list[int], sample: Float32) -> Self:
        """With a level that a rule over *watched* features passes now and then."""
        features = watched
        if rule == "all":
            # Of many features hardly ever all are on: two of those that often are.
            often = (sample[:, watched] > 0).mean(axis=0).argsort()[-2:]
            features = [watched[i] for i in often]
        values = sample[:, features]
        height = values.min(axis=1) if rule == "all" else values.max(axis=1)
        share = 0.5 if rule == "all" else 0.95
        found = np.quantile(height[height > 0], share) if (height > 0).any() else 0.0
        level = 0.0 if rule == "weighted_sum" else float(np.float32(found))
        family = SAEFeatureDetector if sae.is_exact_on_subset else TopKFeatureDetector
        detector = family.from_sae(
            sae,
            name="watched",
            features=features,
            rule=rule,
            levels=[level] * len(features),
            aggregator=Max(),
        )
        return cls(rule, features, level, detector)

    def take_in(self, full: Float32, activations: dict[str, Float32]) -> None:
        """Compare on tokens whose *full* encoding (n_tokens, d_sae) is known."""
        features = full[:, self.features]
        judge = np.logical_and if self.rule == "all" else np.logical_or
        expected = judge.reduce(features > np.float32(self.level), axis=1)
        if self.rule == "weighted_sum":
            # Some libraries keep values below 0.
            expected = features.sum(axis=1, dtype=np.float64) != 0
        wrong = (score(self.detector, activations)[:, 0] != 0) != expected
        gap = np.abs(features - self.level).min(axis=1)
        is_close = gap <= 1e-5 * max(1.0, self.level)
        self.n_wrong += int(wrong.sum())
        self.n_rounded += int((wrong & is_close).sum())
        self.n_held += int(expected.sum())
        if isinstance(self.detector, TopKFeatureDetector):
            self.n_encoded += n_encoded(self.detector, activations)


def n_encoded(detector: TopKFeatureDetector, activations: Mapping[str, Float32]) -> int:
    """How many tokens of *activations* the whole encoder had to look at."""
    columns = []
    for projection in detector.projections:
        x = activations[projection.hook_point]
        columns.append(x @ projection.weight.T + projection.bias)
        if projection.wants_norm:
            columns.append(squared_norms(x)[:, None])
    x = np.hstack([activations[h] for h in detector.sae.hook_points])
    return int(detector.may_hold(np.hstack(columns), x).sum())


def work(detector: Detector, sae: SAE, share_encoded: float) -> str:
    """Multiplications a token against those of the full encoder."""
    n_full = sae.W_enc.size
    total = sum(p.weight.size for p in detector.projections) + share_encoded * n_full
    return f"{n_full / total:.0f} times less arithmetic than the encoder"


if __name__ == "__main__":
    main()
