"""Remembers what each engine has told, for a sender that starts over."""

from collections import Counter

from monitor.records import Gap, LossReason

_MAX_ENGINES = 1024  # Engine starts that are remembered.


class Repeats:
    """The last step of each engine, and what its last gap did not list."""

    def __init__(self) -> None:
        self._last_steps: dict[str, int] = {}
        self._n_unclaimed: Counter[str] = Counter()
        self._last_unlisted: dict[str, tuple[LossReason, int, int, int]] = {}

    def last_step(self, engine: str) -> int:
        """Return the last step that was noted, or -1."""
        return self._last_steps.get(engine, -1)

    def note(self, engine: str, step: int) -> None:
        """Remember that *engine* told of *step*."""
        self._last_steps[engine] = max(step, self._last_steps.pop(engine, -1))
        if len(self._last_steps) > _MAX_ENGINES:
            oldest = next(iter(self._last_steps))
            del self._last_steps[oldest]
            self._last_unlisted.pop(oldest, None)
            self._n_unclaimed.pop(oldest, None)

    def n_new_unlisted(self, gap: Gap) -> tuple[int, int]:
        """
        Return how many tokens, and ends, of no named request *gap* adds.

        A gap that is sent again may have grown: same reason and first step.
        """
        n_tokens = gap.n_tokens - sum(lost.n_tokens for lost in gap.lost)
        n_ends = max(0, gap.n_finished - len(gap.finished))
        told_tokens = told_ends = 0
        last = self._last_unlisted.get(gap.engine)
        if last is not None and last[:2] == (gap.reason, gap.first_step):
            _, _, told_tokens, told_ends = last
        n_tokens, n_ends = max(n_tokens, told_tokens), max(n_ends, told_ends)
        self._last_unlisted[gap.engine] = (
            gap.reason,
            gap.first_step,
            n_tokens,
            n_ends,
        )
        self._n_unclaimed[gap.engine] += n_tokens - told_tokens
        return n_tokens - told_tokens, n_ends - told_ends

    def claim(self, engine: str, n_tokens: int) -> int:
        """Return how many of *n_tokens*, found missing, were told of without a name."""
        n_claimed = min(self._n_unclaimed[engine], max(0, n_tokens))
        self._n_unclaimed[engine] -= n_claimed
        return n_claimed
