"""Where canaries stand, for the ingest thread: a run that is on, and what came last."""

import logging

from monitor.canaries import CanaryLook, CanaryResult, CanaryVerdict
from monitor.records import Gap, LossReason, StepBatch
from monitor.sets import WatchedSets
from probes.canaries import tolerance_of
from service.daemon.loaded_set import LoadedSet

log = logging.getLogger("innerwatch.canaries")


class CanaryWatch:
    """
    Kept by the ingest thread. Times are seconds since the epoch.

    Attributes:
        failure: Why what is seen can not be trusted; "" from the first run that passes.

        problem: Why nothing is known of it: the last run was not answered.
    """

    def __init__(self, now: float) -> None:
        self.failure = self.problem = ""
        self._sure_until = now
        self._look: CanaryLook | None = None
        self._digest = ""
        self._tolerance = 0.0

    def begin(self, live: LoadedSet, name: str) -> CanaryLook | None:
        """Look for the canaries of *live*; return what looks, None if it has none."""
        bundle = live.bundle
        if not bundle.canaries:
            return None
        self._tolerance = tolerance_of(bundle.identity.dtype)
        self._digest = live.digest
        self._look = CanaryLook(bundle.canaries, name, live.bank)
        return self._look

    def observe(self, sets: WatchedSets, batch: StepBatch) -> None:
        """Let a run that is on see *batch*, which was checked."""
        if self._look is not None and sets.knows(self._digest):
            self._look.observe(sets.view_of(self._digest, batch))

    def end(self, problem: str) -> tuple[CanaryResult | None, str]:
        """
        End the run; with a *problem* the server did not answer.

        Returns:
            What came of it, None if there was no run; and what the record is to say
            of it, "" if it passed.
        """
        look, self._look = self._look, None
        if look is None:
            return None, ""
        if problem:
            result = CanaryResult.not_answered(problem)
        else:
            result = look.result(self._tolerance)
        self.problem = problem
        if result.is_blind:
            self.failure = result.detail
        if result.verdict is CanaryVerdict.PASSED:
            self.failure = ""
            return result, ""
        log.warning("canaries: %s: %s", result.verdict, result.detail)
        return result, f"{result.verdict}: {result.detail}"

    def gap(self, result: CanaryResult | None, now: float) -> Gap | None:
        """Return what is in doubt by *result*: all since the last that was not."""
        if result is None or result.verdict is CanaryVerdict.NOT_ANSWERED:
            return None
        began_at, self._sure_until = min(self._sure_until, now), now
        if not result.is_blind:
            return None
        return Gap(
            engine="",
            rank=0,
            reason=LossReason.CANARY_FAILED,
            first_step=0,
            last_step=0,
            n_tokens=0,
            began_at=began_at,
            ended_at=now,
        )
