"""A detector set that the daemon holds, and what engines are offered of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from probes.bank import ProjectionBank
from probes.bank_union import BankUnion
from probes.bundle import Bundle, load_bundle
from service.daemon.detector_sets import DetectorSet
from service.daemon.hello import UnfitEngine, check_hello
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.wire import bank_to_proto


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedSet:
    """A bundle, where it was found, and the columns it asks for."""

    name: str
    path: Path
    bundle: Bundle
    bank: ProjectionBank

    @classmethod
    def read(cls, path: Path, *, digest: str | None = None, name: str = "") -> Self:
        """
        Load the bundle at *path*: called *name*, or else its own name and version.

        Raises:
            ArtifactError: It can not be read, or is not the one of that *digest*.
        """
        bundle = load_bundle(path, expected_digest=digest)
        return cls(
            name=name or f"{bundle.name}:{bundle.version}",
            path=path,
            bundle=bundle,
            bank=ProjectionBank.compile(bundle.detectors),
        )

    @property
    def digest(self) -> str:
        """Of the bundle."""
        return self.bundle.digest

    @property
    def facts(self) -> DetectorSet:
        """What has to be known of it to decide on it."""
        return DetectorSet(
            name=self.name,
            digest=self.digest,
            bank_digest=self.bank.digest,
            n_columns={h: self.bank.n_columns(h) for h in self.bank.hook_points},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offer:
    """
    What an engine that says Hello is checked against, and told to compute.

    Attributes:
        sets: Whose columns are computed, the live one among them.

        bank: Theirs together.

        message: The same, as it is sent.
    """

    sets: tuple[LoadedSet, ...]
    bank: BankUnion
    message: pb.Bank

    @classmethod
    def of(cls, sets: Sequence[LoadedSet]) -> Self:
        """
        Compile the banks of *sets* into one.

        Raises:
            ArtifactError: Two of them read one hook point with different d_model.
        """
        union = BankUnion.compile({one.digest: one.bank for one in sets})
        return cls(sets=tuple(sets), bank=union, message=bank_to_proto(union))

    @property
    def order(self) -> pb.StreamResponse:
        """What tells an engine to compute it."""
        return pb.StreamResponse(bank=self.message)

    def check(self, request: pb.HelloRequest) -> None:
        """
        Raise unless the engine of *request* can be watched with every set.

        Raises:
            MalformedHello: A field is missing or makes no sense.
            UnfitEngine: Another model, or a hook point or room for columns is missing.
        """
        for one in self.sets:
            check_hello(request, one.bundle, one.bank)
        needed = max(self.bank.layout.widths.values())
        if request.mode == pb.CAPTURE_MODE_PUSHDOWN and needed > request.k_max:
            names = " + ".join(one.name for one in self.sets)
            raise UnfitEngine(
                f"k_max: the detector sets {names} need {needed} columns at a hook "
                f"point, the engine has room for {request.k_max}"
            )
