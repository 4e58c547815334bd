"""``innerwatch sae``: what is in an SAE checkpoint, and one form for all of them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli import UsageError

if TYPE_CHECKING:  # NumPy is not needed for ``--help``.
    from probes.sae_formats import SAE


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add ``sae inspect`` and ``sae import``."""
    parser = subparsers.add_parser("sae", help="inspect and import SAE checkpoints")
    actions = parser.add_subparsers(required=True, metavar="action")
    inspecting = actions.add_parser("inspect", help="print what is understood of one")
    inspecting.set_defaults(run=run, act=_inspect)
    importing = actions.add_parser(
        "import",
        help="write one in the form that every detector reads",
        description="Writes a SAELens folder where the SAE's kind allows it, and "
        "innerwatch's own form (sae.json, sae.safetensors) else. What is not "
        "understood is refused.",
    )
    importing.add_argument("--out", required=True, type=Path, help="folder to write")
    importing.set_defaults(run=run, act=_import)
    for action in (inspecting, importing):
        action.add_argument("path", type=Path, help="the checkpoint: folder or file")
        _add_facts(action)
        action.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Inspect or import; 2 if it is not understood."""
    args.act(args)
    return 0


def _add_facts(action: argparse.ArgumentParser) -> None:
    facts = action.add_argument_group("what the files do not say")
    facts.add_argument("--format", help="told from the files where it is not given")
    facts.add_argument(
        "--hook-point",
        action="append",
        metavar="NAME",
        help="where it reads; once for each source of a crosscoder, in order",
    )
    facts.add_argument("--model-name", help="the model it was trained on")
    facts.add_argument(
        "--scale", type=float, help="what activations are multiplied by before it"
    )
    facts.add_argument("--k", type=int, help="how many features of a TopK SAE are on")


def _inspect(args: argparse.Namespace) -> None:
    sae, form = _load(args)
    _print(args, describe(sae, args.path, form))


def _import(args: argparse.Namespace) -> None:
    from probes.sae_formats import format_of, write_sae

    if args.out.exists():
        raise UsageError(f"--out: expected no such folder, found {args.out}")
    sae, _ = _load(args)
    write_sae(args.out, sae)
    _print(args, describe(sae, args.out, format_of(args.out)))


def _load(args: argparse.Namespace) -> "tuple[SAE, str]":
    """The SAE, and its format by name."""
    from probes.sae_formats import format_of, load_sae

    form = args.format or format_of(args.path)
    sae = load_sae(
        args.path,
        format=form,
        hook_points=tuple(args.hook_point) if args.hook_point else None,
        model_name=args.model_name,
        scale=args.scale,
        k=args.k,
    )
    return sae, form


def describe(sae: "SAE", path: Path, form: str) -> dict[str, object]:
    """What is understood of *sae*, read from *path* in the format *form*."""
    decoder = "none"
    if sae.W_dec is not None:
        decoder = "of another place" if sae.is_transcoder else "of the input"
    return {
        "path": str(path),
        "format": form,
        "activation": sae.activation,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "hook_points": list(sae.hook_points),
        "model_name": sae.model_name,
        "input_norm": sae.input_norm,
        "decoder": decoder,
        "exact": _exactness(sae),
        "is_watchable": _is_watchable(sae),
    }


def _exactness(sae: "SAE") -> str:
    """What has to be evaluated for a feature to be the full encoder's."""
    if not sae.is_exact_on_subset:
        return "full encoder on candidate tokens, from whole activations"
    if sae.activation == "groupmax":
        return f"a feature's own group of {len(sae.group_of(0))} rows"
    return "a feature's own row"


def _is_watchable(sae: "SAE") -> bool:
    """Whether it reads where activations are captured."""
    from probes.sae_formats.record import check_residual

    try:
        check_residual(sae)
    except ValueError:
        return False
    return True


def _print(args: argparse.Namespace, facts: dict[str, object]) -> None:
    if args.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name:<14}{'-' if shown is None else shown}")
