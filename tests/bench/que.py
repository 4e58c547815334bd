"""Quantum entropy scores on a synthetic case, in three forms.

usage: python -m tests.bench.que [--repetitions 20]

Benign tokens are normal in 64 dimensions, with standard deviations from 1 to 10 along
random axes. One in ten tokens of the traffic has moved by SHIFT benign standard
deviations along one direction, the same for all, chosen among the axes at random. The
forms see 10,000 benign tokens and as many of unlabelled traffic (of fewer, the
direction is not found as well); the AUROC is of moved tokens against
the others, on traffic that was not fitted on, as the mean over the repetitions.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.arrays import Float64
from probes.fit.benign import que_form
from probes.fit.evaluate import auroc

D_MODEL, N_TOKENS, SHARE_MOVED, SHIFT, ALPHA = 64, 10_000, 0.1, 3.0, 4.0

Form = Callable[[Float64, Float64], tuple[Float64, Float64]]


def mahalanobis(trusted: Float64, _untrusted: Float64) -> tuple[Float64, Float64]:
    """The benign covariance's inverse."""
    return trusted.mean(axis=0), np.linalg.inv(np.cov(trusted.T))


def not_whitened(trusted: Float64, untrusted: Float64) -> tuple[Float64, Float64]:
    """The traffic's covariance as it is, used on whitened tokens: a known mistake."""
    mean = trusted.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(trusted.T))
    whiten = axes / np.sqrt(variances) @ axes.T
    spreads, directions = np.linalg.eigh(np.cov(untrusted.T))
    weigh = directions * np.exp(ALPHA * spreads / spreads[-1]) @ directions.T
    return mean, whiten @ weigh @ whiten


def canonical(trusted: Float64, untrusted: Float64) -> tuple[Float64, Float64]:
    """As `fit_que` computes it."""
    return que_form(trusted, untrusted, ALPHA)


FORMS: dict[str, Form] = {
    "Mahalanobis": mahalanobis,
    "QUE, not whitened": not_whitened,
    "QUE, canonical": canonical,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Where benign tokens lie, and where the others have moved."""

    rng: np.random.Generator
    axes: Float64
    direction: int

    @classmethod
    def draw(cls, seed: int) -> "Case":
        rng = np.random.default_rng(seed)
        axes = np.linalg.qr(rng.normal(size=(D_MODEL, D_MODEL)))[0]
        return cls(rng=rng, axes=axes, direction=int(rng.integers(D_MODEL)))

    def tokens(self, is_moved: NDArray[np.bool_]) -> Float64:
        """Tokens of shape (n, D_MODEL)."""
        z = self.rng.normal(size=(len(is_moved), D_MODEL))
        z[is_moved, self.direction] += SHIFT
        made: Float64 = z * np.linspace(1, 10, D_MODEL) @ self.axes.T
        return made


def aurocs(n_repetitions: int) -> dict[str, float]:
    """The mean AUROC of each form."""
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    nobody = np.zeros(N_TOKENS, dtype=np.bool_)
    for seed in range(n_repetitions):
        case = Case.draw(seed)
        is_moved = case.rng.random(N_TOKENS) < SHARE_MOVED
        trusted, untrusted = case.tokens(nobody), case.tokens(is_moved)
        fresh = case.tokens(is_moved)
        for name, form_of in FORMS.items():
            mean, form = form_of(trusted, untrusted)
            centred = fresh - mean
            scores = np.einsum("nd,de,ne->n", centred, form, centred)
            found[name].append(auroc(scores[is_moved], scores[~is_moved]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Print the AUROC of each form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    args = parser.parse_args()
    for name, value in aurocs(args.repetitions).items():
        print(f"{name:18} {value:.3f}")


if __name__ == "__main__":
    main()
