"""Remembers what each engine has told, for a sender that starts over."""

from monitor.records import Gap, LossReason

_MAX_ENGINES = 1024  # Engine starts that are remembered.


class Repeats:
    """The last step of each engine, and what its last gap did not list."""

    def __init__(self) -> None:
        self._last_steps: dict[str, int] = {}
        self._last_unlisted: dict[str, tuple[LossReason, int, int]] = {}

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

    def n_new_unlisted(self, gap: Gap) -> int:
        """
        Return how many tokens of no request *gap* adds to what was told before.

        A gap that is sent again may have grown: same reason and first step.
        """
        n_unlisted = gap.n_tokens - sum(lost.n_tokens for lost in gap.lost)
        last = self._last_unlisted.get(gap.engine)
        is_same = last is not None and last[:2] == (gap.reason, gap.first_step)
        n_told = last[2] if last is not None and is_same else 0
        told = (gap.reason, gap.first_step, max(n_told, n_unlisted))
        self._last_unlisted[gap.engine] = told
        return max(0, n_unlisted - n_told)
