"""Which detector set is live, which runs beside it, and what may happen next."""

# Rule 1: no clock, no file, no socket and no lock in here. A change returns a new
# value or raises; whoever holds the old one holds something that is still whole.
#
# A set is scored on a request from its first token to its last, or not at all. A
# promotion is therefore three moments, and no request is begun again:
#
#     promote --> coming   the engines are sent a bank with both sets' columns;
#                          every request still begins under the live set
#     arrived --> live     every engine computes that bank: requests that begin from
#                          here on are the new set's, those in flight stay the old's
#     retired              the last request of the old set has ended: its columns
#                          leave the bank with the next swap
#
# A rollback is a promotion of the set that was live before; while its columns are
# still computed it needs no new bank and takes effect at once. A rollback of what is
# still coming withdraws it.
#
# Because the two sets' columns are in one bank for a while, they have to fit into
# k_max together. Sets whose banks are equal, as after a recalibration, share them.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_SETS = 16
"""Sets that are kept loaded: each is a label value and holds its weights in memory."""


class SwapError(ValueError):
    """A change that can not be made; nothing was changed."""


class SetState(StrEnum):
    """What a detector set does now."""

    LIVE = "live"
    SHADOW = "shadow"
    COMING = "coming"
    RETIRING = "retiring"
    PREVIOUS = "previous"
    LOADED = "loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSet:
    """
    What has to be known of a bundle to decide on it.

    Attributes:
        name: The bundle's; an operator's handle on it.

        digest: SHA-256 of the bundle, hex.

        bank_digest: Of its columns; sets of one bank digest share them.

        n_columns: By hook point, the columns it asks for.
    """

    name: str
    digest: str
    bank_digest: str
    n_columns: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """What one connected engine taps: its hook points, and columns at each."""

    engine: str
    hook_points: frozenset[str]
    k_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSets:
    """
    Every loaded set and what each does; "" is none.

    Attributes:
        sets: By name.

        live: Scores the requests that begin now, and flags.

        shadow: Scores the same tokens beside it, and flags nothing.

        coming: Goes live when every engine computes its columns.

        retiring: Was live; requests that began under it still run.

        previous: What a rollback goes back to.
    """

    sets: Mapping[str, DetectorSet]
    live: str
    shadow: str = ""
    coming: str = ""
    retiring: str = ""
    previous: str = ""

    @classmethod
    def first(cls, live: DetectorSet) -> "DetectorSets":
        """Return what a daemon starts with: *live*, and nothing else."""
        return cls(sets={live.name: live}, live=live.name)

    @property
    def computed(self) -> tuple[str, ...]:
        """Names of the sets whose columns the engines have to compute, live first."""
        names = (self.live, self.retiring, self.coming, self.shadow)
        return tuple(dict.fromkeys(name for name in names if name))

    def state_of(self, name: str) -> SetState:
        """
        Return what the set *name* does now.

        Raises:
            SwapError: No set of that name is loaded.
        """
        self._check_known(name)
        # A set that is coming may be the shadow, or the previous one, or retiring:
        # the first that applies is what an operator waits for.
        states = (
            (self.live, SetState.LIVE),
            (self.coming, SetState.COMING),
            (self.retiring, SetState.RETIRING),
            (self.shadow, SetState.SHADOW),
            (self.previous, SetState.PREVIOUS),
        )
        return next((state for n, state in states if n == name), SetState.LOADED)

    def load(self, new: DetectorSet, taps: Sequence[Taps]) -> "DetectorSets":
        """
        Add *new*, which then does nothing until it is told to.

        Raises:
            SwapError: A set of that name, or of that digest, is loaded; there are
                `MAX_SETS`; or it does not fit one of *taps* even alone.
        """
        for known in self.sets.values():
            if known.name == new.name or known.digest == new.digest:
                raise SwapError(
                    f"{new.name} (digest {new.digest[:12]}): already loaded as "
                    f"{known.name} (digest {known.digest[:12]})"
                )
        if len(self.sets) >= MAX_SETS:
            raise SwapError(f"{new.name}: {MAX_SETS} sets are loaded: unload one")
        check_fits([new], taps)
        return replace(self, sets={**self.sets, new.name: new})

    def unload(self, name: str) -> "DetectorSets":
        """
        Forget a set that is loaded, or end and forget the shadow.

        Raises:
            SwapError: There is no such set, or it is live, coming, retiring or what a
                rollback goes back to.
        """
        state = self.state_of(name)
        if name == self.previous:  # It may be the shadow too.
            state = SetState.PREVIOUS
        if state not in (SetState.LOADED, SetState.SHADOW):
            raise SwapError(f"{name}: expected a loaded set or the shadow, is {state}")
        rest = {n: s for n, s in self.sets.items() if n != name}
        shadow = "" if self.shadow == name else self.shadow
        return replace(self, sets=rest, shadow=shadow)

    def start_shadow(self, name: str, taps: Sequence[Taps]) -> "DetectorSets":
        """
        Run *name* beside the live set; what was the shadow is only loaded again.

        Raises:
            SwapError: There is no such set, it does something else already, or it does
                not fit one of *taps* beside the sets that are computed.
        """
        state = self.state_of(name)
        if state not in (SetState.LOADED, SetState.PREVIOUS):
            raise SwapError(f"{name}: expected a loaded set, is {state}")
        if self.coming and self.coming == self.shadow:
            raise SwapError(f"{name}: the shadow {self.coming} is being promoted")
        return replace(self, shadow=name)._checked(taps)

    def without_shadow(self) -> "DetectorSets":
        """End the shadow, which is only loaded then."""
        return replace(self, shadow="")

    def promote(self, name: str, taps: Sequence[Taps]) -> "DetectorSets":
        """
        Send for *name*, to go live with `arrived`.

        Raises:
            SwapError: There is no such set, it is live, another swap is under way, or
                it does not fit one of *taps* beside the sets that are computed.
        """
        state = self.state_of(name)
        if state is SetState.LIVE:
            raise SwapError(f"{name}: is live already")
        if self.coming:
            raise SwapError(f"{name}: the swap to {self.coming} is under way")
        if self.retiring:
            raise SwapError(
                f"{name}: requests that began under {self.retiring} still run"
            )
        return replace(self, coming=name)._checked(taps)

    def roll_back(self, taps: Sequence[Taps]) -> "DetectorSets":
        """
        Withdraw what is coming; else send for the set that was live before.

        Raises:
            SwapError: Nothing was live before, or it no longer fits *taps*.
        """
        if self.coming:
            return replace(self, coming="")
        if not self.previous:
            raise SwapError(f"{self.live}: no set was live before it")
        return replace(self, coming=self.previous)._checked(taps)

    def arrived(self) -> "DetectorSets":
        """Make what is coming live: every engine computes its columns."""
        if not self.coming:
            return self
        return replace(
            self,
            live=self.coming,
            shadow="" if self.shadow == self.coming else self.shadow,
            coming="",
            retiring=self.live,
            previous=self.live,
        )

    def retired(self) -> "DetectorSets":
        """Forget who was live before for the bank: its last request has ended."""
        return replace(self, retiring="")

    def _check_known(self, name: str) -> None:
        if name not in self.sets:
            raise SwapError(
                f"{name!r}: no such detector set, loaded are {sorted(self.sets)}"
            )

    def _checked(self, taps: Sequence[Taps]) -> "DetectorSets":
        check_fits([self.sets[name] for name in self.computed], taps)
        return self


def check_fits(sets: Sequence[DetectorSet], taps: Sequence[Taps]) -> None:
    """Raise `SwapError` unless each of *taps* has the columns for all of *sets*."""
    names = " + ".join(s.name for s in sets)
    distinct = {s.bank_digest: s for s in sets}.values()
    for tap in taps:
        for hook_point in sorted({h for s in sets for h in s.n_columns}):
            if hook_point not in tap.hook_points:
                raise SwapError(
                    f"{names}: reads {hook_point}, engine {tap.engine} taps "
                    f"{sorted(tap.hook_points)}"
                )
            n_columns = sum(s.n_columns.get(hook_point, 0) for s in distinct)
            if n_columns > tap.k_max:
                raise SwapError(
                    f"{names}: {hook_point}: expected at most {tap.k_max} columns "
                    f"(k_max of engine {tap.engine}), got {n_columns}"
                )
