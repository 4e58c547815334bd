"""Which columns of a batch are whose: banks by digest, and the sets in each."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from monitor.records import StepBatch
from monitor.set_scores import WatchedSet, only
from probes.bank_union import UnionLayout


class Layouts:
    """The banks that engines may compute."""

    def __init__(self) -> None:
        self._layouts: dict[str, UnionLayout] = {}

    def replace(self, layouts: Mapping[str, UnionLayout]) -> None:
        """Know these banks, by their digest, and no others."""
        self._layouts = dict(layouts)

    def cut(self, batch: StepBatch, sets: Collection[WatchedSet]) -> StepBatch:
        """
        Leave out of *batch* what none of *sets* reads.

        An engine may tap more hook points than the sets read, and pads the columns of
        each to the widest. What has another shape is left to be refused.
        """
        if batch.activations:
            hook_points = {h for one in sets for h in one.bank.weights}
            return only(batch, dict.fromkeys(hook_points, slice(None)))
        layout = self._layouts.get(batch.bank_digest)
        if layout is None:
            return batch
        return only(batch, {h: slice(0, n) for h, n in layout.widths.items()})

    def alike(
        self, parts: Sequence[StepBatch], sets: Iterable[WatchedSet]
    ) -> Sequence[StepBatch]:
        """
        Cut *parts* of one step to the columns of one bank.

        While a bank is swapped, ranks may differ by a step or two in which they
        compute. Then they have the columns of a set in common, and come back as if
        only its bank had been computed: of the first of *sets* for which that is so.
        """
        if len({part.bank_digest for part in parts}) == 1:
            return parts
        for one in sets:
            if all(self.holds(part, one) for part in parts):
                return [self.view(part, one) for part in parts]
        return parts

    def widths(
        self, batch: StepBatch, now: WatchedSet, sets: Collection[WatchedSet]
    ) -> Mapping[str, int]:
        """
        Expected columns, or d_model, by hook point; empty: of an unknown bank.

        *now* is the one of *sets* that is live.
        """
        if not batch.activations:
            layout = self._layouts.get(batch.bank_digest)
            return {} if layout is None else layout.widths
        found = now.d_models
        for one in sets:
            known = one.d_models
            found |= {h: n for h, n in known.items() if h in batch.activations}
        return found

    def holds(self, batch: StepBatch, one: WatchedSet) -> bool:
        """Whether *batch* has what a set reads."""
        if batch.activations:
            return batch.activations.keys() >= one.bank.weights.keys()
        layout = self._layouts.get(batch.bank_digest)
        return layout is not None and one.digest in layout.places

    def view(self, batch: StepBatch, one: WatchedSet) -> StepBatch:
        """
        *batch* as if only this set's bank had been computed.

        Where it was not, it comes back as it is: that it is another bank's is what
        refuses it.
        """
        if batch.activations:
            return only(batch, dict.fromkeys(one.bank.hook_points, slice(None)))
        layout = self._layouts.get(batch.bank_digest)
        places = None if layout is None else layout.places.get(one.digest)
        if places is None or batch.bank_digest == one.bank.digest:
            return batch
        return replace(only(batch, places), bank_digest=one.bank.digest)
