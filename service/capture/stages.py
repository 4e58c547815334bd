"""Which part of the model is on this worker, and who else sends for its engine."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.capture.settings import layer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """
    One pipeline stage; without pipeline parallelism the only one.

    Attributes:
        rank: Its number, from 0.

        blocks: Of the model's decoder layers, those that are on each stage, in order.
    """

    rank: int
    blocks: tuple[range, ...]

    @property
    def own(self) -> range:
        """The decoder layers on this stage."""
        return self.blocks[self.rank]

    def owned(self, hook_points: Sequence[str]) -> tuple[str, ...]:
        """Return those of *hook_points* that are on this stage."""
        return tuple(h for h in hook_points if layer_of(h) in self.own)

    def sending(self, hook_points: Iterable[str]) -> tuple[int, ...]:
        """Return the stages that own any of *hook_points*."""
        layers = {layer_of(hook_point) for hook_point in hook_points}
        return tuple(
            rank for rank, blocks in enumerate(self.blocks) if layers & set(blocks)
        )


def this_stage(n_layers: int) -> Stage:
    """Return the stage of this process, of a model of *n_layers* decoder layers."""
    from vllm.distributed import get_pp_group
    from vllm.distributed.utils import get_pp_indices

    group = get_pp_group()
    size = group.world_size
    return Stage(
        rank=group.rank_in_group,
        blocks=tuple(range(*get_pp_indices(n_layers, r, size)) for r in range(size)),
    )


def shared_engine_id() -> str:
    """
    Return a random id that all pipeline stages have alike.

    Every stage has to call it at the same point of its start: it waits for the first.
    """
    from vllm.distributed import get_pp_group

    return str(get_pp_group().broadcast_object(uuid.uuid4().hex, src=0))
