"""What the plugin is asked to do: read from vLLM's `additional_config` and checked.

Whatever shapes the model's graph (hook points, mode, columns, ABI) has to be in
`additional_config`, because vLLM hashes that, and nothing of ours, into the key of
its compile cache. A cached graph without the tap would load and stay silent.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

ABI = 2
"""Of the tap operators. Raise it when their signature or buffers change."""

KEY = "innerwatch"
"""Our entry in vLLM's `additional_config`."""

_ENVIRONMENT = "INNERWATCH_"
_ADDRESS = re.compile(r"unix:/.+|.+:\d+")
_HOOK_POINT = re.compile(r"blocks\.(\d+)\.hook_resid_post")

Mode = Literal["pushdown", "activations"]
Transport = Literal["auto", "ring", "grpc"]
TapPointName = Literal["auto", "block", "norm"]


class CaptureError(ValueError):
    """The plugin cannot watch what it was asked to watch; the engine must not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """
    The plugin's settings.

    Attributes:
        hook_points: TransformerLens names, e.g. ``"blocks.15.hook_resid_post"``.

        mode: ``"pushdown"`` sends columns, ``"activations"`` the activations.

        tap_point: Whether a block is read at its end or at the norm that follows, which
            keeps vLLM's fusions with tensor parallelism; ``"auto"`` is there the norm.

        k_max: Columns that a hook point has room for.

        address: The daemon's gRPC address, ``unix:/path`` or ``host:port``.

        transport: How batches get to the daemon. ``"ring"`` is memory that both share,
            on a unix socket only; ``"grpc"`` goes everywhere; ``"auto"`` is the ring
            where there is one, and gRPC where there is none.

        buffer_mib: Memory that unsent batches may take before tokens are lost.

        abi: Version of the tap that the graph was made for.
    """

    hook_points: tuple[str, ...]
    mode: Mode = "pushdown"
    tap_point: TapPointName = "auto"
    k_max: int = 128
    address: str = "unix:/run/innerwatch/innerwatch.sock"
    transport: Transport = "auto"
    buffer_mib: int = 256
    abi: int = ABI

    def __post_init__(self) -> None:
        if not self.hook_points:
            raise CaptureError(f"{KEY}.hook_points: expected at least one, got none")
        layers = [layer_of(name) for name in self.hook_points]
        if len(set(layers)) != len(layers):
            raise CaptureError(
                f"{KEY}.hook_points: expected each once, got {list(self.hook_points)}"
            )
        if self.mode not in ("pushdown", "activations"):
            raise CaptureError(
                f"{KEY}.mode: expected 'pushdown' or 'activations', got {self.mode!r}"
            )
        if self.tap_point not in ("auto", "block", "norm"):
            raise CaptureError(
                f"{KEY}.tap_point: expected 'auto', 'block' or 'norm', "
                f"got {self.tap_point!r}"
            )
        if not _ADDRESS.fullmatch(str(self.address)):
            raise CaptureError(
                f"{KEY}.address: expected 'unix:/path' or 'host:port', "
                f"got {self.address!r}"
            )
        if self.transport not in ("auto", "ring", "grpc"):
            raise CaptureError(
                f"{KEY}.transport: expected 'auto', 'ring' or 'grpc', "
                f"got {self.transport!r}"
            )
        if self.transport == "ring" and not self.address.startswith("unix:"):
            raise CaptureError(
                f"{KEY}.transport: a ring needs a unix socket, got {self.address!r}"
            )
        if not (type(self.k_max) is int and 1 <= self.k_max <= 4096):
            raise CaptureError(f"{KEY}.k_max: expected 1 to 4096, got {self.k_max!r}")
        if not (type(self.buffer_mib) is int and self.buffer_mib >= 1):
            raise CaptureError(
                f"{KEY}.buffer_mib: expected at least 1, got {self.buffer_mib!r}"
            )
        if self.abi != ABI:
            raise CaptureError(
                f"{KEY}.abi: this plugin's tap has ABI {ABI}, the configuration was "
                f"made for {self.abi}; leave abi out of additional_config"
            )

    def to_additional_config(self) -> dict[str, object]:
        """Return the JSON-ready entry for vLLM's `additional_config`."""
        return {**asdict(self), "hook_points": list(self.hook_points)}


def layer_of(hook_point: str) -> int:
    """
    Return the index L of ``blocks.L.hook_resid_post``.

    Raises:
        CaptureError: *hook_point* is not one that the plugin can tap.
    """
    match = _HOOK_POINT.fullmatch(hook_point) if isinstance(hook_point, str) else None
    if match is None:
        raise CaptureError(
            f"{KEY}.hook_points: expected names such as 'blocks.15.hook_resid_post', "
            f"got {hook_point!r}"
        )
    return int(match.group(1))


def settings_from(entry: object) -> CaptureSettings:
    """
    Check the `additional_config` entry *entry* and return it typed.

    Raises:
        CaptureError: A key is unknown or a value is not what it should be.
    """
    if not isinstance(entry, Mapping):
        raise CaptureError(f"additional_config.{KEY}: expected a table, got {entry!r}")
    known = set(CaptureSettings.__dataclass_fields__)
    if unknown := sorted(set(entry) - known):
        raise CaptureError(
            f"{KEY}.{unknown[0]}: unknown key; expected one of {sorted(known)}"
        )
    hook_points = entry.get("hook_points", ())
    if not isinstance(hook_points, list | tuple):
        raise CaptureError(f"{KEY}.hook_points: expected a list, got {hook_points!r}")
    return CaptureSettings(**{**entry, "hook_points": tuple(hook_points)})


def settings_from_environment(
    environment: Mapping[str, str] = os.environ,
) -> dict[str, object]:
    """
    Return the settings that INNERWATCH_* variables give, unchecked.

    ``INNERWATCH_HOOK_POINTS`` is a comma-separated list, and the one that arms.
    """
    entry: dict[str, object] = {}
    if names := environment.get(_ENVIRONMENT + "HOOK_POINTS"):
        entry["hook_points"] = [name.strip() for name in names.split(",")]
    for key in ("mode", "tap_point", "address", "transport"):
        if value := environment.get(_ENVIRONMENT + key.upper()):
            entry[key] = value
    for key in ("k_max", "buffer_mib"):
        if value := environment.get(_ENVIRONMENT + key.upper()):
            if not value.isdecimal():
                raise CaptureError(
                    f"{_ENVIRONMENT}{key.upper()}: expected a number, got {value!r}"
                )
            entry[key] = int(value)
    return entry
