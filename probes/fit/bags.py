"""Requests of two kinds, as the rows of their tokens that count."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.arrays import Float32, Float64, Int64
from probes.dataset import Dataset
from probes.fit.select import rows_of_tokens, subsample

# Rows that a mean and a deviation are taken from: more changes neither.
_SCALER_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bags:
    """
    What a probe is fitted on: a label holds for a request, not for its tokens.

    Attributes:
        positive: Rows of each request that shows the behaviour.

        negative: Rows of each that does not.
    """

    positive: tuple[Int64, ...]
    negative: tuple[Int64, ...]

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        *,
        name: str,
        positive: Sequence[int],
        negative: Sequence[int],
        counted: str,
        tokens: str = "all",
    ) -> "Bags":
        """
        The rows of two sets of requests; those without any are left out.

        Args:
            dataset: Where the requests are.

            name: Of the probe, for messages.

            positive: Indices of requests that show the behaviour.

            negative: Indices of requests that do not.

            counted: Tokens that the aggregator counts, ``all`` or ``answer``.

            tokens: Tokens of a positive request that are taken to show it; "all"
                is all that count.

        Raises:
            ValueError: A class has no tokens, or a request is in both.
        """
        both = sorted({*positive} & {*negative})
        if both:
            raise ValueError(
                f"probe {name!r}: expected a request to be positive or negative, "
                f"got {dataset.requests[both[0]].request_id!r} as both"
            )
        wanted = counted if tokens == "all" else tokens
        bags = cls(
            positive=rows_each(dataset, positive, wanted),
            negative=rows_each(dataset, negative, counted),
        )
        if not bags.positive or not bags.negative:
            raise ValueError(
                f"probe {name!r}: expected tokens of both kinds, got "
                f"{len(bags.positive)} positive requests with {wanted!r} tokens and "
                f"{len(bags.negative)} negative ones with {counted!r} tokens"
            )
        return bags


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaler:
    """
    Standardisation of activations, folded into a fitted first layer.

    Attributes:
        mean: Of shape (d_model,), float64.

        scale: Of shape (d_model,), float64, positive.
    """

    mean: Float64
    scale: Float64

    @classmethod
    def of(cls, activations: Float32, bags: Bags, seed: int) -> "Scaler":
        """Mean and deviation of as many rows of either kind."""
        drawn = [
            subsample(np.concatenate(kind), _SCALER_ROWS // 2, seed)
            for kind in (bags.positive, bags.negative)
        ]
        means, squares = [], []
        for rows in drawn:
            wide = activations[rows].astype(np.float64)
            means.append(wide.mean(axis=0))
            squares.append((wide**2).mean(axis=0))
        mean = np.mean(means, axis=0)
        variance = np.mean(squares, axis=0) - mean**2
        # Below this a dimension is constant but for rounding, and stays as it is.
        is_moving = variance > 1e-12 * (np.mean(squares, axis=0) + 1e-30)
        scale = np.where(is_moving, np.sqrt(np.maximum(variance, 0)), 1.0)
        return cls(mean=mean, scale=scale)

    def __call__(self, rows: Float32) -> Float32:
        """*rows* of shape (n_rows, d_model), standardised."""
        scaled: Float32 = ((rows - self.mean) / self.scale).astype(np.float32)
        return scaled

    def fold(self, weight: Float64, bias: Float64) -> tuple[Float32, Float32]:
        """
        The layer on raw activations that equals one on standardised ones.

        Args:
            weight: Of shape (..., d_model).

            bias: Of shape (...,).
        """
        raw = weight / self.scale
        return raw.astype(np.float32), (bias - raw @ self.mean).astype(np.float32)


def rows_each(
    dataset: Dataset, indices: Sequence[int], tokens: str
) -> tuple[Int64, ...]:
    """Rows of the *tokens* of each request that has any, in row order."""
    parts = (rows_of_tokens(dataset, index, tokens) for index in sorted(indices))
    return tuple(rows for rows in parts if len(rows))
