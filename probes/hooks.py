"""Hook points: the names of the places where activations are read."""

import re

# TransformerLens' name of the residual stream after a block, counted from 0.
_RESID_POST = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.hook_resid_post")
_RESID_PRE = re.compile(r"blocks\.([1-9][0-9]{0,3})\.hook_resid_pre")


def layer_of(hook_point: str) -> int:
    """
    The index of the block that *hook_point* reads after.

    >>> layer_of("blocks.15.hook_resid_post")
    15

    Raises:
        ValueError: *hook_point* is not ``blocks.L.hook_resid_post``.
    """
    match = _RESID_POST.fullmatch(hook_point)
    if match is None:
        raise ValueError(
            f"hook point: expected 'blocks.L.hook_resid_post', got {hook_point!r}"
        )
    return int(match[1])


def check_hook_point(hook_point: str) -> None:
    """Raise `ValueError` unless *hook_point* is ``blocks.L.hook_resid_post``."""
    layer_of(hook_point)


def canonical_hook_point(hook_point: str) -> str:
    """
    The post-block name of the place that *hook_point* reads.

    What enters block L is what left block L - 1, and many SAEs are published
    under the former name.

    >>> canonical_hook_point("blocks.8.hook_resid_pre")
    'blocks.7.hook_resid_post'

    Raises:
        ValueError: The place is not the residual stream after a block.
    """
    match = _RESID_PRE.fullmatch(hook_point)
    if match is not None:
        return f"blocks.{int(match[1]) - 1}.hook_resid_post"
    check_hook_point(hook_point)
    return hook_point
