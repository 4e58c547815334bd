"""``innerwatch check``: load and validate everything, serve nothing."""

import argparse
import json
from pathlib import Path

from service.commands.calibrations import calibration_facts, print_calibration
from service.commands.serve import DEFAULT_CONFIG


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``check``."""
    parser = subparsers.add_parser("check", help="check a configuration, serve nothing")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check; 0 if ``serve`` would start now. Leaves nothing behind it."""
    import tempfile

    from prometheus_client import CollectorRegistry

    from probes.bank import ProjectionBank
    from probes.bundle import load_bundle
    from service.address import parse_address
    from service.config import load_config
    from service.daemon.audit.opening import FILE_NAME, AuditError
    from service.daemon.audit.store import AuditStore, StoreSettings, make_keeper
    from service.daemon.exporter import Exporter
    from service.daemon.server import check_free
    from service.daemon.sinks.configured import sinks_of
    from service.daemon.web_page import check_web

    config = load_config(args.config)
    bundle = load_bundle(config.bundle_path, expected_digest=config.bundle_digest)
    bank = ProjectionBank.compile(bundle.detectors)
    folder = config.audit_path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AuditError(
            f"audit directory {config.audit_path}: expected a writable directory: "
            f"{error.strerror}"
        ) from error
    settings = StoreSettings.of(config)
    if (config.audit_path / FILE_NAME).exists():
        AuditStore.open(
            config.audit_path, model="", bundle_digest="", settings=settings
        ).close()
    else:
        make_keeper(settings, b"")
    check_free(parse_address(config.daemon.listen))
    metrics = config.metrics
    registry = CollectorRegistry()
    Exporter(metrics.host, metrics.port, registry, str).close()
    sinks_of(config, registry, version="")
    check_web(config)
    facts = {
        "config": str(args.config),
        "bundle": bundle.name,
        "version": bundle.version,
        "digest": bundle.digest,
        "model": bundle.identity.model,
        **calibration_facts(bundle.calibration),
        "columns": {h: bank.n_columns(h) for h in bank.hook_points},
    }
    if args.json:
        print(json.dumps(facts))
    else:
        print(f"{args.config}: fine")
        print(f"bundle    {bundle.name} {bundle.version}")
        print(f"digest    {bundle.digest}")
        print(f"model     {bundle.identity.model}")
        print_calibration(bundle.calibration)
    return 0
