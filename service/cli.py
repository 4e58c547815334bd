"""The command ``innerwatch``: one subcommand a module of `service.commands`."""

import argparse
import importlib
import sqlite3
import sys
from collections.abc import Sequence
from typing import Protocol

COMMANDS = (
    "serve",
    "check",
    "status",
    "flags",
    "audit",
    "detectors",
    "canary",
    "drill",
    "collect",
    "sae",
    "fit",
    "calibrate",
    "evaluate",
    "bundle",
    "demo",
)
"""In the order of the help. Those that are not installed are left out."""


class UsageError(ValueError):
    """The operator's to mend; one line."""


def check_positive(option: str, value: int) -> None:
    """Raise `UsageError` unless *value*, given for *option*, is 1 or more."""
    if value < 1:
        raise UsageError(f"{option}: expected 1 or more, got {value}")


class Command(Protocol):
    """
    What a module of `service.commands` offers.

    Modules import nothing heavy at their top: ``--help`` imports them all. What
    they need they import in `run`.
    """

    def add_parser(
        self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]"
    ) -> None:
        """Add a parser, with ``set_defaults(run=run)``."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """
        Do it; return the exit status.

        A `ValueError` (every error of ours whose fault is the operator's or an
        artifact's is one) or an `OSError` becomes one line and status 2; a
        `RuntimeError` or `sqlite3.Error`, something that did not work out, one line
        and status 1.
        """
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="innerwatch",
        description="Watches the inside of a model while vLLM serves.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="command")
    words = list(sys.argv[1:] if argv is None else argv)
    # Only what is asked for is imported: serving must not need what fitting needs.
    asked = [name for name in words[:1] if name in COMMANDS]
    for name in asked or COMMANDS:
        try:
            command: Command = importlib.import_module(f"service.commands.{name}")
        except ModuleNotFoundError as error:
            if asked:
                print(f"innerwatch: {name} needs {error.name}", file=sys.stderr)
                return 2
            continue
        command.add_parser(subparsers)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except ModuleNotFoundError as error:
        print(f"innerwatch: {words[0]} needs {error.name}", file=sys.stderr)
        return 2
    except sqlite3.Error as error:
        print(f"innerwatch: the audit record: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"innerwatch: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2


if __name__ == "__main__":
    sys.exit(main())
