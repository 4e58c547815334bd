"""An engine that computes the bank it is told, and bundles to swap between."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probes.aggregate import Max, Mean
from probes.bundle import Bundle, new_bundle, save_bundle
from probes.linear import LinearProbe
from service.daemon.audit.opening import FILE_NAME
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from tests.monitor.builders import EARLY, LATE, Rows, batch, calibration, probe
from tests.service.builders import Client, Place, identity
from tests.service.messages import batch_to_proto

LIVE = "test:1"
"""What the daemon calls the bundle that it starts with."""


class Engine(Client):
    """Computes what it was last told from its next step on, as the plugin does."""

    bank: pb.Bank
    n_orders = 0
    is_deaf = False
    """Whether it goes on with the bank it has: a step takes it some time."""
    n_steps = 0

    def hello(self, **changes: object) -> pb.HelloResponse:
        answer = super().hello(**changes)
        self.bank = answer.bank
        return answer

    def answer(self) -> pb.StreamResponse:
        """Return the next answer; take the orders before it."""
        while (answer := super().answer()).HasField("bank"):
            self.n_orders += 1
            if not self.is_deaf:
                self.bank = answer.bank
        return answer

    def step(
        self,
        *rows: Rows,
        finished: tuple[str, ...] = (),
        token_ids: Sequence[int] = (),
    ) -> pb.StreamResponse:
        """Run a step with the bank of now."""
        self.n_steps += 1
        sent = batch(
            *rows, step=self.n_steps, finished=finished, holds_activations=True
        )
        message = batch_to_proto(sent)
        if token_ids:
            message.token_ids = np.array(token_ids, dtype="<i4").tobytes()
        message.bank_digest = self.bank.digest
        del message.hook_points[:]
        for part in self.bank.slices:
            weight = np.frombuffer(part.weight, "<f4").reshape(-1, part.d_model)
            x = sent.activations[part.hook_point]
            columns = x @ weight.T + np.frombuffer(part.bias, "<f4")
            message.hook_points.add(
                hook_point=part.hook_point,
                width=part.n_columns,
                values=columns.astype("<f4").tobytes(),
                squared_norms=sent.squared_norms[part.hook_point].tobytes(),
            )
        return self.ask(message)

    def beat(self) -> pb.StreamResponse:
        """Say which bank the next step computes."""
        return self.ask(pb.Heartbeat(is_proven=True, bank_digest=self.bank.digest))

    def states(self) -> dict[str, str]:
        """Each set and what it does."""
        found = self.control.ListDetectors(pb.ListDetectorsRequest())
        return {one.name: one.state for one in found.sets}

    def load(self, path: Path, **fields: str) -> pb.DetectorSets:
        request = pb.LoadDetectorsRequest(path=str(path), **fields)
        answer: pb.DetectorSets = self.control.LoadDetectors(request)
        return answer

    def promote(self, name: str) -> pb.DetectorSets:
        answer: pb.DetectorSets = self.control.Promote(pb.DetectorsRequest(name=name))
        return answer

    def shadow(self, name: str) -> pb.DetectorSets:
        request = pb.DetectorsRequest(name=name)
        answer: pb.DetectorSets = self.control.StartShadow(request)
        return answer

    def roll_back(self) -> pb.DetectorSets:
        answer: pb.DetectorSets = self.control.Rollback(pb.RollbackRequest())
        return answer


def others() -> list[LinearProbe]:
    """Detectors that agree with `tests.monitor.builders.detectors` on nothing."""
    return [probe("fourth", LATE, 3, Max()), probe("slow", EARLY, 2, Mean())]


def make_bundle(
    name: str = "other", version: str = "1", threshold: float = 2.0, **changes: object
) -> Bundle:
    """A bundle of `others`, unless changed."""
    detectors = changes.pop("detectors", others())
    assert isinstance(detectors, list)
    return new_bundle(
        name=name,
        version=version,
        identity=identity(**changes),  # type: ignore[arg-type]
        detectors=detectors,
        calibration=calibration(threshold, [d.name for d in detectors]),
    )


def saved_bundle(folder: Path, **changes: object) -> Path:
    """Save what `make_bundle` makes, and return where."""
    made = make_bundle(**changes)  # type: ignore[arg-type]
    path = folder / f"{made.name}-{made.version}"
    save_bundle(path, made)
    return path


def record(where: Place, table: str) -> list[sqlite3.Row]:
    """Rows of the record."""
    with sqlite3.connect(where.folder / "audit" / FILE_NAME) as connection:
        connection.row_factory = sqlite3.Row
        return list(connection.execute(f"SELECT * FROM {table}"))
