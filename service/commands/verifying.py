"""Holds a bundle against a model and a data set, for ``innerwatch bundle verify``."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError
from service.progress import counting, progress_bar

if TYPE_CHECKING:
    from probes.bundle import Bundle
    from probes.dataset import Dataset
    from probes.fit.select import Selector

Facts = dict[str, object]


def verify(
    bundle: "Bundle",
    *,
    model: Path | None,
    data: Path | None,
    benign: str | None,
    is_shown: bool,
) -> tuple[Facts, list[str]]:
    """
    Hold *bundle* against what is given.

    Args:
        bundle: Loaded: its files fit together.

        model: Its model's folder.

        data: A data set of its model.

        benign: Which requests of it are benign, as ``LABEL=VALUE``.

        is_shown: Whether progress is.

    Returns:
        What was found, as JSON has it, and a line for each thing that does not hold.

    Raises:
        ArtifactError: Another model; names the first field that differs.
    """
    facts: Facts = {
        "name": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "n_canaries": len(bundle.canaries),
    }
    problems: list[str] = []
    selector = None if benign is None else parse_selector(benign)
    if model is not None:
        facts["model"] = _check_model(bundle, model, is_shown)
    if data is not None:
        from probes.dataset import load_dataset

        dataset = load_dataset(data, is_verified=True)
        facts["data"] = str(data)
        facts["is_fitted_on"] = dataset.sha256 == bundle.fit_sha256
        evidence = bundle.calibration.evidence
        facts["is_calibrated_on"] = (
            evidence is not None and dataset.sha256 == evidence.dataset_sha256
        )
        facts["canaries"] = _replay(bundle, dataset, problems)
        if selector is not None:
            facts["rate"] = _judge(bundle, dataset, selector, problems, is_shown)
    return facts, problems


def parse_selector(text: str) -> "Selector":
    """
    The requests that *text*, ``LABEL=VALUE``, means.

    A value is JSON (``true``, ``3``, ``"3"``), or else a string as it is.

    Raises:
        UsageError: There is no label or no value.
    """
    from probes.fit.select import Selector

    label, _, value = text.partition("=")
    if not label or not value:
        raise UsageError(f"--benign: expected LABEL=VALUE, got {text!r}")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    is_label = isinstance(read, str | bool | int | float)
    if not is_label or (isinstance(read, float) and not math.isfinite(read)):
        read = value
    return Selector(label=label, equals=read)


def print_facts(facts: Facts) -> None:
    """Print what `verify` found."""
    print(f"digest     {facts['digest']}")
    if "model" in facts:
        print(f"model      {facts['model']}: the one that it was made for")
    if "data" in facts:
        print(f"data       {facts['data']}: of the same model")
    for key, text in (
        ("is_fitted_on", "the detectors were fitted on it"),
        ("is_calibrated_on", "the thresholds were chosen on it"),
    ):
        if facts.get(key):
            print(f"           {text}: it says nothing about other requests")
    _print_canaries(facts)
    rate = facts.get("rate")
    if isinstance(rate, dict):
        _print_rate(rate)


def _check_model(bundle: "Bundle", model: Path, is_shown: bool) -> str:
    from probes.bundle import check_identity
    from probes.identity import identity_of

    with progress_bar("reading the model", None, is_shown):
        # How it will be served is not in its folder.
        identity = identity_of(model, bundle.identity.dtype)
    check_identity(bundle, identity, where=str(model))
    return str(model)


def _replay(bundle: "Bundle", dataset: "Dataset", problems: list[str]) -> Facts:
    from probes.canaries import tolerance_of
    from probes.fit.realised import replay_canaries

    n_found, difference = replay_canaries(bundle, dataset)
    tolerance = tolerance_of(bundle.identity.dtype)
    if difference > tolerance:
        problems.append(
            f"canaries: expected to differ by at most {tolerance:.2g}, "
            f"found {difference:.2g}"
        )
    return {
        "n_found": n_found,
        "difference": difference if math.isfinite(difference) else None,
        "tolerance": tolerance,
    }


def _judge(
    bundle: "Bundle",
    dataset: "Dataset",
    selector: "Selector",
    problems: list[str],
    is_shown: bool,
) -> Facts:
    from probes.fit.realised import realised_rate
    from probes.fit.select import select_requests

    benign = select_requests(dataset, selector)
    with progress_bar("scoring", len(benign), is_shown) as advance:
        found = realised_rate(bundle, dataset, benign, counting(advance))
    evidence = bundle.calibration.evidence
    alpha = None if evidence is None else evidence.alpha
    if alpha is not None and found.low > alpha:
        problems.append(
            f"benign requests flagged: expected at most {alpha:.2%}, found "
            f"{found.rate:.2%} (95 %: {found.low:.2%} to {found.high:.2%})"
        )
    return asdict(found) | {"rate": found.rate, "alpha": alpha}


def _print_canaries(facts: Facts) -> None:
    n_canaries, found = facts["n_canaries"], facts.get("canaries")
    if not n_canaries:
        print("canaries   none")
    elif not isinstance(found, dict):
        print(f"canaries   {n_canaries}, not replayed")
    elif not found["n_found"]:
        print(f"canaries   none of {n_canaries} is in the data set")
    else:
        difference = found["difference"]
        print(
            f"canaries   {found['n_found']} of {n_canaries} are in the data set; they "
            f"differ by {'infinity' if difference is None else f'{difference:.2g}'} "
            f"({found['tolerance']:.2g} is tolerated)"
        )


def _print_rate(rate: Facts) -> None:
    from probes.calibration.record import NO_LIMIT

    def cells(name: str) -> str:
        values = rate[name]
        assert isinstance(values, tuple)
        return "".join(f"{'any' if n == NO_LIMIT else n:>10}" for n in values)

    alpha = rate["alpha"]
    promised = "nothing is promised" if alpha is None else f"promised {alpha:.2%}"
    print(
        f"flagged    {rate['rate']:.2%} of benign requests "
        f"(95 %: {rate['low']:.2%} to {rate['high']:.2%}); {promised}"
    )
    print(f"  tokens up to {cells('longest')}")
    print(f"  requests     {cells('n_requests')}")
    print(f"  flagged      {cells('n_flagged')}")
    print(f"  turned away by a gate {rate['n_unlike']}, longer {rate['n_beyond']}")
