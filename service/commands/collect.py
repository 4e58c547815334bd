"""`innerwatch collect`: prompts through vLLM, activations into a data set."""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from service.cli import UsageError, check_positive
from service.progress import progress_bar
from service.serving import Prompt, VLLMServer, leave_out, load_prompts

if TYPE_CHECKING:  # gRPC and the rest take a moment to import, ``--help`` need not.
    from service.collecting import Target

_HELLO_SECONDS = 60
_LAST_ROWS_SECONDS = 60


class Settings(TypedDict):
    """How prompts are run: the model, and what `VLLMServer` and `chat_all` take."""

    model: str
    hook_points: list[str]
    max_tokens: int
    concurrency: int
    vllm_arguments: list[str]
    log: Path
    is_quiet: bool


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "collect",
        help="run prompts through vLLM and write their activations as a data set",
        description="Starts vLLM with the plugin in 'activations' mode, sends every "
        "prompt, and writes a data set for `innerwatch fit`. Interrupted, the same "
        "command goes on where it was.",
    )
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--hook-point",
        required=True,
        action="append",
        dest="hook_points",
        help="e.g. blocks.15.hook_resid_post; may be repeated",
    )
    parser.add_argument("--max-tokens", type=int, default=32, help="to generate, each")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument(
        "--vllm-arg",
        action="append",
        default=[],
        dest="vllm_arguments",
        help="one more argument for `vllm serve`, e.g. --vllm-arg=--dtype=float32",
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        dest="left_out",
        metavar="TEXT",
        help="take TEXT out of every prompt, to see what a detector makes of the rest; "
        "may be repeated",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin anew where an interrupted collection would go on",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, and print what was written."""
    from probes.identity import file_sha256
    from service.collecting import Target

    _check(args)
    prompts = load_prompts(args.prompts)
    try:
        prompts = leave_out(prompts, args.left_out)
    except ValueError as error:
        raise UsageError(f"--leave-out: {error}") from error
    args.out.mkdir(parents=True, exist_ok=True)
    target = Target(
        path=args.out,
        labels={p.prompt_id: p.labels for p in prompts},
        settings={
            "prompts_sha256": file_sha256(args.prompts),
            "left_out": json.dumps(args.left_out),
            "max_tokens": args.max_tokens,
            "vllm_arguments": json.dumps(args.vllm_arguments),
        },
        goes_on=not args.restart,
    )
    n_before = len(target.written())
    n_rows = collect_targets(
        [target],
        prompts,
        model=args.model,
        hook_points=args.hook_points,
        max_tokens=args.max_tokens,
        concurrency=args.concurrency,
        vllm_arguments=args.vllm_arguments,
        log=args.out / "vllm.log",
        is_quiet=args.json,
    )[args.out]
    if args.json:
        facts = {
            "path": str(args.out),
            "n_requests": len(prompts),
            "n_rows": n_rows,
            "n_from_before": n_before,
        }
        print(json.dumps(facts))
    else:
        before = f", {n_before} of them from before" if n_before else ""
        print(f"{args.out}: {len(prompts)} requests{before}, {n_rows} rows")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise `UsageError` for what would go wrong once vLLM has started."""
    from probes.hooks import check_hook_point

    check_positive("--max-tokens", args.max_tokens)
    check_positive("--concurrency", args.concurrency)
    for hook_point in args.hook_points:
        try:
            check_hook_point(hook_point)
        except ValueError as error:
            raise UsageError(f"--hook-point: {error}") from error
    if len(set(args.hook_points)) < len(args.hook_points):
        raise UsageError(
            f"--hook-point: expected different ones, got {args.hook_points}"
        )
    if (args.out / "dataset.json").exists():
        raise UsageError(f"{args.out}: expected no finished data set, found one")


def collect(
    *,
    jobs: Mapping[Path, Sequence[Prompt]],
    **settings: Unpack[Settings],
) -> dict[Path, int]:
    """As `collect_targets`, a data set a job, each begun anew."""
    # gRPC and the rest take a moment to import, which ``--help`` need not.
    from service.collecting import Target

    targets = [
        Target(path=path, labels={p.prompt_id: p.labels for p in prompts})
        for path, prompts in jobs.items()
    ]
    everything = [prompt for prompts in jobs.values() for prompt in prompts]
    return collect_targets(targets, everything, **settings)


def collect_targets(
    targets: Sequence["Target"],
    prompts: Sequence[Prompt],
    **settings: Unpack[Settings],
) -> dict[Path, int]:
    """
    Run the prompts of every target through one vLLM, but those that are written.

    Returns:
        The number of rows by data set.

    Raises:
        ServingError: vLLM did not start or answer.
        CollectionError: A data set was begun with something else, or not every row
            arrived; the data sets are unfinished.
    """
    from service.collecting import Collector, collecting

    written = set().union(*(target.written() for target in targets))
    left = [prompt for prompt in prompts if prompt.prompt_id not in written]
    is_shown = not settings["is_quiet"]
    with (
        Collector(targets) as collector,
        tempfile.TemporaryDirectory(prefix="innerwatch-") as folder,
        collecting(Path(folder) / "collect.sock", collector) as address,
    ):
        server = VLLMServer(
            settings["model"],
            capture={
                "hook_points": settings["hook_points"],
                "mode": "activations",
                "address": address,
            },
            log=settings["log"],
            arguments=["--no-enable-prefix-caching", *settings["vllm_arguments"]],
        )
        with server:
            with progress_bar("starting vLLM", None, is_shown) as advance:
                server.wait_until_ready(lambda: advance(0))
            collector.begin(_HELLO_SECONDS)
            with progress_bar("prompts", len(prompts), is_shown) as advance:
                advance(len(prompts) - len(left))
                server.chat_all(
                    left,
                    max_tokens=settings["max_tokens"],
                    concurrency=settings["concurrency"],
                    on_answer=lambda *_: advance(1),
                )
            collector.wait(_LAST_ROWS_SECONDS)
        return collector.finish()
