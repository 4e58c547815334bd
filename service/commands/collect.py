"""`innerwatch collect`: prompts through vLLM, activations into a data set."""

import argparse
import json
import tempfile
from pathlib import Path

from service.cli import UsageError, check_positive
from service.progress import progress_bar
from service.serving import Prompt, VLLMServer, load_prompts

_LAST_ROWS_SECONDS = 60


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "collect",
        help="run prompts through vLLM and write their activations as a data set",
        description="Starts vLLM with the plugin in 'activations' mode, sends every "
        "prompt, and writes a data set for `innerwatch fit`.",
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
    parser.add_argument("--json", action="store_true", help="print JSON, no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, and print what was written."""
    _check(args)
    prompts = load_prompts(args.prompts)
    args.out.mkdir(parents=True, exist_ok=True)
    n_rows = collect(
        model=args.model,
        jobs={args.out: prompts},
        hook_points=args.hook_points,
        max_tokens=args.max_tokens,
        concurrency=args.concurrency,
        vllm_arguments=args.vllm_arguments,
        log=args.out / "vllm.log",
        is_quiet=args.json,
    )[args.out]
    if args.json:
        print(
            json.dumps(
                {"path": str(args.out), "n_requests": len(prompts), "n_rows": n_rows}
            )
        )
    else:
        print(f"{args.out}: {len(prompts)} requests, {n_rows} rows")
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
    model: str,
    jobs: dict[Path, list[Prompt]],
    hook_points: list[str],
    max_tokens: int,
    concurrency: int,
    vllm_arguments: list[str],
    log: Path,
    is_quiet: bool,
) -> dict[Path, int]:
    """
    Run the prompts of every job through one vLLM; write a data set a job.

    Returns:
        The number of rows by data set.

    Raises:
        ServingError: vLLM did not start or answer.
        CollectionError: Not every row arrived; the data sets are unfinished.
    """
    # gRPC and the rest take a moment to import, which ``--help`` need not.
    from service.collecting import Collector, Target, collecting

    everything = [p for prompts in jobs.values() for p in prompts]
    targets = [
        Target(path=path, labels={p.prompt_id: p.labels for p in prompts})
        for path, prompts in jobs.items()
    ]
    with (
        Collector(targets) as collector,
        tempfile.TemporaryDirectory(prefix="innerwatch-") as folder,
        collecting(Path(folder) / "collect.sock", collector) as address,
    ):
        server = VLLMServer(
            model,
            capture={
                "hook_points": hook_points,
                "mode": "activations",
                "address": address,
            },
            log=log,
            arguments=["--no-enable-prefix-caching", *vllm_arguments],
        )
        with server:
            with progress_bar("starting vLLM", None, not is_quiet) as advance:
                server.wait_until_ready(lambda: advance(0))
            with progress_bar("prompts", len(everything), not is_quiet) as advance:
                server.chat_all(
                    everything,
                    max_tokens=max_tokens,
                    concurrency=concurrency,
                    on_answer=lambda *_: advance(1),
                )
            collector.wait(_LAST_ROWS_SECONDS)
        return collector.finish()
